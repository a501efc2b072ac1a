"""Multilayer perceptrons in JAX whose backward pass is written by hand."""

from jaxmlp import data as data
from jaxmlp import metrics as metrics
from jaxmlp import rules as rules
from jaxmlp.activations import Activation as Activation
from jaxmlp.backward import backprop as backprop
from jaxmlp.backward import backward as backward
from jaxmlp.backward import output_delta as output_delta
from jaxmlp.backward import value_and_grad as value_and_grad
from jaxmlp.check import check_gradients as check_gradients
from jaxmlp.forward import Tape as Tape
from jaxmlp.forward import cost as cost
from jaxmlp.forward import forward as forward
from jaxmlp.forward import output_loss as output_loss
from jaxmlp.forward import predict as predict
from jaxmlp.forward import tail_loss as tail_loss
from jaxmlp.losses import Loss as Loss
from jaxmlp.network import MLP as MLP
from jaxmlp.network import Layer as Layer
from jaxmlp.network import init as init
from jaxmlp.readouts import Trace as Trace
from jaxmlp.readouts import mean_gradient as mean_gradient
from jaxmlp.rules import Rule as Rule
from jaxmlp.training import DivergedError as DivergedError
from jaxmlp.training import Result as Result
from jaxmlp.training import fit as fit
