"""Reading data, making more of it, and making it fit a network."""

from jaxmlp.data.augment import elastic as elastic
from jaxmlp.data.augment import shifts as shifts
from jaxmlp.data.batches import Batches as Batches
from jaxmlp.data.idx import read_idx as read_idx
from jaxmlp.data.scaling import scale_pixels as scale_pixels
