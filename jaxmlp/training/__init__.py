"""Training: the state, the pure epoch, and `fit`, which runs it."""

from jaxmlp.training.epoch import epoch as epoch
from jaxmlp.training.fit import DivergedError as DivergedError
from jaxmlp.training.fit import Result as Result
from jaxmlp.training.fit import fit as fit
from jaxmlp.training.state import Data as Data
from jaxmlp.training.state import Plan as Plan
from jaxmlp.training.state import TrainState as TrainState
from jaxmlp.training.state import start as start
