"""The parts of jaxmlp behind its public names that tests reach for, all in one place."""

# ruff: noqa: F401

from jaxmlp.search_space import check as check_space
from jaxmlp.search_space import draw_settings, list_grid
from jaxmlp.training import Data, Plan, Regularization, epoch, packing, start
from jaxmlp.training import _epoch as epoch_module
from jaxmlp.training import ensembles as ensembles_module
from jaxmlp.training import population as population_module
from jaxmlp.training import stream as stream_module
from jaxmlp.training.cross_validation import _summarize as summarize_folds
from jaxmlp.training.halving import choose_rungs as rungs
from jaxmlp.training.population_checkpoint import PopulationCheckpoints
from jaxmlp.training.sampling import draw, gather, permute
from jaxmlp.training.sharding import put_data
