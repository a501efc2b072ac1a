"""Training: the state, the pure epoch, and `fit`, which runs it."""

from jaxmlp.dropout import dropout_masks as dropout_masks
from jaxmlp.penalties import Penalty as Penalty
from jaxmlp.penalties import l1 as l1
from jaxmlp.penalties import l2 as l2
from jaxmlp.penalties import max_norm as max_norm
from jaxmlp.search_space import log_uniform as log_uniform
from jaxmlp.search_space import uniform as uniform
from jaxmlp.training._epoch import epoch as epoch
from jaxmlp.training._epoch import start as start
from jaxmlp.training._fit import fit as fit
from jaxmlp.training._search import SearchResult as SearchResult
from jaxmlp.training._search import search as search
from jaxmlp.training._sweep import sweep as sweep
from jaxmlp.training.cross_validation import CrossValidation as CrossValidation
from jaxmlp.training.cross_validation import cross_validate as cross_validate
from jaxmlp.training.divergence import DivergedError as DivergedError
from jaxmlp.training.regularization import Regularization as Regularization
from jaxmlp.training.result import Result as Result
from jaxmlp.training.result import SweepResult as SweepResult
from jaxmlp.training.state import Data as Data
from jaxmlp.training.state import Plan as Plan
from jaxmlp.training.state import TrainState as TrainState

Regularisation = Regularization  # as earlier scripts spell it
