"""The Laplace approximation: the posterior of a trained network's weights as a normal distribution around them.

`precision = sum_m (Gauss-Newton matrix of example m) / noise variance + prior precision I`. Along the eigenvectors of
its first part the precision is diagonal, whatever the structure: variances, samples and the evidence are sums over the
eigenvalues. Outputs are those of the network made linear in its weights. Sources: MacKay 1992, "Bayesian
interpolation"; Ritter et al. 2018, "A scalable Laplace approximation for neural networks", for Kronecker factors;
Immer et al. 2021, "Improving predictions of Bayesian neural nets via local linearization"; Daxberger et al. 2021,
"Laplace redux", whose library's conventions hold here.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, Shaped

from jaxmlp import losses, validate
from jaxmlp._forward import cost
from jaxmlp.maps import Factors
from jaxmlp.methods.curvature_blocks import check_size
from jaxmlp.methods.normal_weights import Structure, draw, find_curvature, linearize, squash
from jaxmlp.network import MLP, Params
from jaxmlp.norms import widen
from jaxmlp.readouts import KroneckerFactors
from jaxmlp.starts import pre_activation_rows, unit_rows
from jaxmlp.trace import split
from jaxmlp.validate import Given, Preprocess

STRUCTURES = ("kronecker", "diagonal", "last_layer", "full")
STEPS, CLOSE = 1000, 1e-8  # of `tune`: how many at most, and the relative change that ends them


class Prediction(NamedTuple):
    """A regression's outputs: their mean, and the variance of that mean, without the noise's own."""

    mean: Float[Array, "m k"]
    variance: Float[Array, "m k"]


class KroneckerPrecision(NamedTuple):
    """A layer's precision over `[W b]`: `values` along the products of the rows of `vectors`."""

    vectors: KroneckerFactors
    values: Float[Array, "o i"]


@dataclass(frozen=True, repr=False)
class Laplace:
    """The result of `laplace`."""

    net: MLP
    structure: Structure
    params: Params  # the mean
    prior_precision: float
    noise_variance: float  # of squared error; 1 for other losses
    vectors: Factors | Float[Array, "p p"] | None  # rows; None: the weights' own axes
    curvature: tuple[Float[Array, "..."], ...]  # the eigenvalues of the sum over the examples
    loss: float  # the sum over the examples
    count: float  # the examples, or the sum of their weights
    preprocess: Preprocess | None = None

    def __repr__(self) -> str:
        """The numbers, without the arrays, which would fill pages."""
        return (
            f"Laplace({self.structure}, prior_precision={self.prior_precision:.4g}, "
            f"noise_variance={self.noise_variance:.4g}, log_evidence={self.log_evidence:.6g})"
        )

    @property
    def precision(self) -> Any:
        """The precision, by structure.

        "diagonal": in the structure of the parameters. "kronecker": a `KroneckerPrecision` for each layer. "full" and
        "last_layer": a matrix over the entries of W by rows and then b, layer after layer.
        """
        values = self._eigenvalues()
        if self.structure == "diagonal":
            return tuple(map(split, values))
        if self.structure == "kronecker":
            return tuple(KroneckerPrecision(*both) for both in zip(self.vectors, values, strict=True))  # pyright: ignore
        return (self.vectors.T * values[0][None]) @ self.vectors  # pyright: ignore

    def predict(
        self, X: Num[Given, "m ..."], *, samples: int | None = None, key: PRNGKeyArray | None = None
    ) -> Prediction | Float[Array, "m k"]:
        """The outputs under the posterior, of the network made linear in its weights.

        Args:
            X: the examples, as `laplace` took them.
            samples: with classes, the mean over so many draws of `z^K` replaces the probit approximation.
            key: for samples.
        Returns:
            For losses of real numbers a `Prediction(mean, variance)`. For others probabilities `(m, k)`:
            `output(z / sqrt(1 + pi/8 variance))`, the probit approximation. For softmax in proportion to
            `1 / sum_j exp((z_j - z_k) / sqrt(1 + pi/8 variance(z_j - z_k)))`: with two classes it is that of a sigmoid.
        Raises:
            ValueError: where an argument does not fit.

        Sources: MacKay 1992, "The evidence framework applied to classification networks", for the approximation; Lu,
        Ie and Sha 2020, "Mean-field approximation to Gaussian-softmax integral", for softmax.
        """
        X = validate.inputs(self.net, X, validate.params(self.net, self.params), self.preprocess)
        regression = self.net.loss.targets == "real"
        if samples is not None:
            samples = validate.whole(samples, "samples")
            if regression:
                raise ValueError(f"samples is {samples}, but loss {self.net.loss.name!r} has a mean and a variance")
            if key is None:
                raise ValueError(f"samples is {samples} and key is None, expected a key to draw by")
        key = None if key is None else validate.key(key)
        start = unit_rows if regression else pre_activation_rows
        f, covariance = linearize(
            self.net, self.structure, self.preprocess, start, self.params, self.vectors, self._eigenvalues(), X
        )
        if regression:
            return Prediction(f, covariance.diagonal(axis1=1, axis2=2))
        return squash(self.net, samples, f, covariance, key)

    def sample(self, key: PRNGKeyArray, n: int) -> Params:
        """`n` draws of the parameters, along a leading axis; what the structure leaves out stays at the mean."""
        n = validate.whole(n, "n")
        return draw(self.structure, n, self.params, self.vectors, self._eigenvalues(), validate.key(key))

    @property
    def log_evidence(self) -> float:
        """`log p(Y | X)`, Laplace's approximation: `log p(Y | X, theta) + log p(theta) - log p(theta | X, Y)`.

        It is `log likelihood - (log det precision - P log prior + prior ||theta||^2) / 2` over P weights.
        """
        curvature, squares = self._of_prior()
        noise, prior = self.noise_variance, self.prior_precision
        log_likelihood = -self.loss / noise
        if self.net.loss == losses.squared_error:
            log_likelihood -= self.count * self.net.sizes[-1] * math.log(2 * math.pi * noise) / 2
        log_ratio = float(np.log1p(curvature / (noise * prior)).sum())
        return log_likelihood - (log_ratio + prior * squares) / 2

    def tune(self) -> "Laplace":
        """The same posterior with the prior precision, and squared error's noise, of the largest evidence.

        With `gamma = sum_p c_p / (c_p + noise prior)` over the curvature's eigenvalues, the number of weights that the
        data determine, each step sets `prior = gamma / ||theta||^2` and `noise = (2 loss + noise gamma) / (m k)`.
        The mean stays: train again with the new prior for more.

        Source: MacKay 1992, "Bayesian interpolation", section 4; the noise's is a step of EM.
        """
        curvature, squares = self._of_prior()
        prior, noise = self.prior_precision, self.noise_variance
        if not squares or not curvature.any():
            raise ValueError("the weights or the curvature are all 0, expected some to choose a prior by")
        numbers = self.count * self.net.sizes[-1]
        for _ in range(STEPS):
            gamma = float((curvature / (curvature + noise * prior)).sum())
            before = prior, noise
            prior = gamma / squares
            if self.net.loss == losses.squared_error:
                noise = max((2 * self.loss + noise * gamma) / numbers, np.finfo(float).tiny)
            if max(abs(math.log(now / was)) for now, was in zip((prior, noise), before, strict=True)) < CLOSE:
                break
        return replace(self, prior_precision=prior, noise_variance=noise)

    def _eigenvalues(self) -> tuple[Array, ...]:
        """The precision's."""
        return tuple(c / self.noise_variance + self.prior_precision for c in self.curvature)

    def _of_prior(self) -> tuple[np.ndarray, float]:
        """The curvature's eigenvalues in one row, and the squared norm of the weights that have a posterior."""
        chosen = self.params[-1:] if self.structure == "last_layer" else self.params
        flat = lambda arrays: np.concatenate([np.asarray(widen(a), np.float64).ravel() for a in arrays])
        return flat(self.curvature), float(np.sum(flat(jax.tree.leaves(chosen)) ** 2))


def laplace(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    structure: Structure = "kronecker",
    prior_precision: float = 1.0,
    *,
    noise_variance: float | None = None,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Laplace:
    """The posterior of the weights, normal around `params`, which training has brought to the largest posterior.

    `precision = sum_m G_m / noise_variance + prior_precision I`, G_m an example's Gauss-Newton matrix. The prior is on
    weights and biases alike, normal around 0.

    - "kronecker": of each layer's W about `m G (x) A`, and of its b about `m G`: two blocks, as laplace-torch has them.
    - "diagonal": G_m's exact diagonal.
    - "last_layer": the exact matrix of the last layer's W and b; the others have no variance.
    - "full": the exact matrix, for small networks.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, as in `backprop`.
        structure: what is kept of the matrix.
        prior_precision: above 0. `jm.quadratic_penalty(zeros, prior_precision / m)` is the penalty that trains for it.
        noise_variance: of squared error's labels around the outputs; 1 unless given.
        weights: how often each example counts, `(m,)`; once unless given.
        preprocess: a function of one example that gives the network's input.
    Returns:
        A `Laplace`, with `precision`, `predict(X)`, `sample(key, n)`, `log_evidence` and `tune()`.
    Raises:
        ValueError: where an argument does not fit, or the loss has no `d2f`.
    Example:
        >>> posterior = jm.laplace(net, params, X, Y, "last_layer").tune()
        >>> posterior.predict(X).shape
        (20, 10)
        >>> posterior.sample(key, 3)[1].W.shape
        (3, 10, 64)

    Source: Daxberger et al. 2021, "Laplace redux".
    """
    examples = validate.examples(net, params, X, Y, weights, None, preprocess)
    validate.one_of(structure, STRUCTURES, "structure")
    prior_precision = validate.number(prior_precision, "prior_precision", above=0)
    if noise_variance is not None and net.loss != losses.squared_error:
        raise ValueError(f"noise_variance is {noise_variance}, but loss {net.loss.name!r} has none: expected None")
    noise_variance = 1.0 if noise_variance is None else validate.number(noise_variance, "noise_variance", above=0)
    widths = {"full": net.shapes, "last_layer": net.shapes[-1:]}.get(structure, ())
    check_size(sum(o * (i + 1) for o, i in widths), "structure", structure)
    # Of the weights as they came: those of the examples keep only their ratios.
    count = len(examples.X) if weights is None else np.asarray(validate.array(weights, "weights"), np.float64).sum()
    count = float(count)
    vectors, mean = find_curvature(net, params, examples, structure, preprocess)
    loss = count * float(cost(net, params, examples.X, examples.Y, weights=examples.weights, preprocess=preprocess))
    summed = tuple(count * widen(values).clip(0) for values in mean)
    return Laplace(net, structure, params, prior_precision, noise_variance, vectors, summed, loss, count, preprocess)
