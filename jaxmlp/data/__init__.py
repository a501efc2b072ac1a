"""Data: reads files, splits examples, fills, scales and augments them, and loads batches from disk."""

from jaxmlp.data._folds import folds as folds
from jaxmlp.data.augment import elastic as elastic
from jaxmlp.data.augment import shifts as shifts
from jaxmlp.data.csv import Table as Table
from jaxmlp.data.csv import read_csv as read_csv
from jaxmlp.data.filling import Filling as Filling
from jaxmlp.data.filling import fill_missing as fill_missing
from jaxmlp.data.idx import read_idx as read_idx
from jaxmlp.data.loader import Batches as Batches
from jaxmlp.data.scaling import Standard as Standard
from jaxmlp.data.scaling import scale_pixels as scale_pixels
from jaxmlp.data.scaling import standardise as standardise
from jaxmlp.data.scaling import standardize as standardize
from jaxmlp.data.splits import split as split
