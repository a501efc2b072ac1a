"""Reading data and making it fit a network."""

from jaxmlp.data.idx import read_idx as read_idx
from jaxmlp.data.scaling import scale_pixels as scale_pixels
