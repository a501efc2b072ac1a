"""A random network in the limit of wide layers, by integrals over one Gaussian.

With weights of variance `c / n` and no biases, a layer's pre-activations are Gaussian of variance
`q^(l+1) = c E[f(sqrt(q^l) g)^2]`, and the mean square of delta changes from layer l+1 to l by the factor
`c E[f'(sqrt(q^l) g)^2]`. Sources: Poole et al. 2016, equation 3; Schoenholz et al. 2017, section 3.
"""

import jax.numpy as jnp
import numpy as np

from jaxmlp.activations import Activation

G = np.linspace(-8, 8, 4001)
DENSITY = np.exp(-(G**2) / 2) / np.exp(-(G**2) / 2).sum()


def variances(f: Activation, c: float, first: float, depth: int) -> np.ndarray:
    """`q^1 .. q^depth`, from `q^1 = first`."""
    q = [first]
    for _ in range(depth - 1):
        a = np.asarray(f.f(jnp.asarray(np.sqrt(q[-1]) * G)), np.float64)
        q.append(c * float(DENSITY @ a**2))
    return np.asarray(q)


def factors(f: Activation, c: float, q: np.ndarray) -> np.ndarray:
    """The factor by which the mean square of delta changes from layer l+1 to layer l, for each `q^l`."""
    df = np.asarray(f.df(jnp.asarray(np.sqrt(q)[:, None] * G)), np.float64)
    return c * df**2 @ DENSITY
