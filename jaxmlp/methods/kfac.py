"""K-FAC: a gradient times the inverse of a Kronecker-factored curvature matrix, as an optax transformation.

A layer's block of the Fisher or Gauss-Newton matrix is about `G (x) A`, so its inverse takes the gradient g `(o, i+1)`
to `G^-1 g A^-1`. The factors are readouts of the step's trace, taken up again from sampled labels or another start.
Sources: Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature"; George et
al. 2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", for EK-FAC.
"""

import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxmlp import norms, rules, validate
from jaxmlp._backward import restart_of
from jaxmlp.doors import takes_network
from jaxmlp.maps import Factors, factor_eigenvectors, factor_power, transform, transform_gradient
from jaxmlp.methods.periodic import every
from jaxmlp.methods.quadratic_model import QuadraticModel, model_cost
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.optimizers import Told, state_dtype
from jaxmlp.readouts import KroneckerFactors, kronecker_factors, mean_gradient, second_moment
from jaxmlp.starts import Start, hessian_root, output_delta, sample_labels
from jaxmlp.trace import Trace, split
from jaxmlp.validate import Given

SHRINK = 19 / 20  # of the damping, for each step between two adaptations: Martens and Grosse, section 6.5
GOOD, BAD = 3 / 4, 1 / 4  # reduction ratios beyond which the damping shrinks or grows

Curvature = Literal["fisher", "gauss_newton", "empirical"]
Rate = float | Float[Given, ""]


def _mix(decay: Array, old: Any, new: Any) -> Any:
    """`decay old + (1 - decay) new`, in the dtype of the old."""
    mix = lambda v, x: decay.astype(v.dtype) * v + (1 - decay).astype(v.dtype) * x.astype(v.dtype)
    return jax.tree.map(mix, old, new)


class Average(NamedTuple):
    """The factors' running averages from 0, and the same average of ones, which corrects their bias."""

    total: Factors
    weight: Float[Array, ""]

    def after(self, factors: Factors, decay: Any) -> "Average":
        return Average(_mix(decay, self.total, factors), _mix(decay, self.weight, jnp.ones_like(self.weight)))

    @property
    def factors(self) -> Factors:
        return jax.tree.map(lambda v: v / jnp.where(self.weight == 0, 1, self.weight), self.total)


class KfacState(NamedTuple):
    """What K-FAC keeps between steps."""

    count: Int[Array, ""]  # steps done
    average: Average
    maps: Factors  # the factors' inverses; for EK-FAC their eigenvectors
    moments: Params | None  # EK-FAC's: the gradients' second moments along the eigenvectors
    damping: Float[Array, ""]
    step: Params  # the last update


@takes_network
def kfac(
    net: MLP,
    learning_rate: Rate | Callable[[Array], Array] | None = None,
    *,
    momentum: Rate = 0.9,
    damping: Rate = 1e-3,
    adapt_every: int | None = None,
    curvature: Curvature = "fisher",
    decay: Rate = 0.95,
    factors_every: int = 10,
    inverses_every: int = 10,
    subsample: int = 1,
    weight_decay: Rate = 0.0,
    eigenbasis: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC: `update = -rate G^-1 g A^-1 + momentum (last update)` for each layer, with damped factors A and G.

    `fit` and `sweep` hand over all it takes. In a loop of your own, `update` takes `trace=` of `backprop`, `key=` for
    sampled labels, `weights=` of the examples where there are any, and for `adapt_every` the `value=` and `value_fn=`
    of the cost. Other transformations go before or behind it by `optax.chain`.

    Args:
        net: the network that is trained.
        learning_rate: a number or a schedule. None: the rate and the momentum of each step minimize the quadratic model
            of the batch's cost with the exact Gauss-Newton matrix, for the price of two tangents forward.
        momentum: the share of the last update in the next; the model finds it where there is no learning rate.
        damping: what the curvature gains on its diagonal, divided among the factors as `factor_power` does.
        adapt_every: steps after which the damping shrinks or grows by the reduction ratio: the change of the cost over
            that of the quadratic model. None keeps it. Inverses take it when they are due.
        curvature: error signals start from labels drawn from the model ("fisher"), from rows of the root of the loss's
            Hessian ("gauss_newton"), or from the true labels ("empirical").
        decay: of the factors' running averages in one step, whatever `factors_every`; their bias is corrected.
        factors_every: steps between two updates of the factors. What is not due is not computed.
        inverses_every: steps between two inversions.
        subsample: factors and model take every so-many-th example of a batch, which saves much of their price.
        weight_decay: adds it times the weights W to the direction (decoupled). `jm.l2` belongs to the cost instead.
        eigenbasis: whether eigenvectors with second moments along them replace the inverses: EK-FAC.
    Returns:
        An optax transformation with extra arguments. `functools.partial(jm.kfac, net)` is a factory: `hyper` may hold
        its numbers, in which members of a sweep may differ.
    Raises:
        ValueError: where an argument does not fit; and in training, where `update` lacks one or the network is another.
    Example:
        >>> optimizer = jm.kfac(net, 0.1, damping=0.1)
        >>> result = jm.fit(net, params, (X, Y), optimizer=optimizer, epochs=5, key=key, progress=False)
        >>> bool(result.history["cost"][-1] < result.history["cost"][0])
        True

    Source: Martens and Grosse 2015, sections 6 and 7, and 8 for `subsample`.
    """
    momentum = validate.scalar(momentum, "momentum", least=0, below=1)
    damping = validate.scalar(damping, "damping", above=0)
    decay = validate.scalar(decay, "decay", least=0, below=1)
    weight_decay = validate.scalar(weight_decay, "weight_decay", least=0)
    eigenbasis = validate.flag(eigenbasis, "eigenbasis")
    adapt_every = None if adapt_every is None else validate.whole(adapt_every, "adapt_every")
    factors_every = validate.whole(factors_every, "factors_every")
    inverses_every = validate.whole(inverses_every, "inverses_every")
    subsample = validate.whole(subsample, "subsample")
    validate.one_of(curvature, ("fisher", "gauss_newton", "empirical"), "curvature")
    if learning_rate is not None and not callable(learning_rate):
        learning_rate = validate.scalar(learning_rate, "learning_rate", least=0)

    def init(params: Any) -> KfacState:
        return _start(net, params, damping, eigenbasis)

    needed = ("params", "trace", *(["key"] if curvature == "fisher" else []))
    needed += () if adapt_every is None else ("value", "value_fn")

    def update(grads: Any, state: Any, params: Any = None, **given: Any) -> tuple[Any, Any]:
        told = Told.read("kfac", net, params, given, needed)
        some = told._replace(**jax.tree.map(lambda a: a[::subsample], {"trace": told.trace, "weights": told.weights}))
        learned = lambda: _learn(state, _restart(net, params, some, curvature), some.weights, decay**factors_every)
        average, moments = every(factors_every, state.count, learned, (state.average, state.moments))
        inverted = lambda: _invert(average, moments, state.damping)
        maps, moments = every(inverses_every, state.count, inverted, (state.maps, moments))
        state = state._replace(average=average, maps=maps, moments=moments)
        direction = _decay_weights(_direct(net, state, grads, told), params, weight_decay)
        model = None
        if learning_rate is None or adapt_every is not None:
            along = (direction, state.step)
            model = model_cost(net, params, some.trace, some.weights, along, grads, state.damping)
        coefficients = _choose(learning_rate, momentum, state, model)
        scaled = lambda i, x: coefficients[i] * norms.widen(x)
        mix = lambda d, last: (scaled(0, d) + scaled(1, last)).astype(last.dtype)
        step = jax.tree.map(mix, direction, state.step)
        if adapt_every is not None and model is not None:
            change = lambda: told.value_fn(optax.apply_updates(params, step)) - told.value
            new = lambda: _adapt(state.damping, change(), model(coefficients), cast(int, adapt_every))
            adapted = lambda: jnp.where(told.counts, new(), state.damping)
            state = state._replace(damping=every(adapt_every, state.count + 1, adapted, state.damping))
        return step, state._replace(count=state.count + 1, step=step)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _direct(net: MLP, state: KfacState, grads: Params, told: Told) -> Params:
    """The gradient by the inverse curvature: read from the mapped trace where that is the same, and cheaper."""
    # A transformation in front of this one may have changed the gradient.
    whole = told.plain and all(map(operator.is_, jax.tree.leaves(grads), jax.tree.leaves(told.grad)))
    if whole and told.grad is not None and state.moments is None and _is_small(net, told.trace):
        return mean_gradient(transform(told.trace, state.maps), told.weights)
    return _precondition(state.maps, state.moments, state.damping, grads)


def _is_small(net: MLP, trace: Trace) -> bool:
    """Whether products of the batch's pairs with the maps cost less than those of the gradient."""
    m = trace.losses.shape[0]
    return sum(m * (o * o + i * i) for o, i in net.shapes) < sum(o * i * (o + i) for o, i in net.shapes)


def _start(net: MLP, params: Any, damping: Array, eigenbasis: bool) -> KfacState:
    dtype = state_dtype(params)
    square = lambda n: jnp.zeros((n, n), dtype)
    zeros = lambda: tuple(KroneckerFactors(square(n_in + 1), square(n_out)) for n_out, n_in in net.shapes)
    like = lambda dtype=None: jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params)
    return KfacState(
        count=jnp.zeros((), jnp.int32),
        average=Average(zeros(), jnp.zeros((), dtype)),
        maps=zeros(),
        moments=like(dtype) if eigenbasis else None,
        damping=jnp.array(damping, dtype),  # a copy: a step may take the state's memory, and hyper's beside it
        step=like(),
    )


def _decay_weights(direction: Params, params: Params, weight_decay: Array) -> Params:
    add = lambda d, p: Layer(d.W + weight_decay.astype(d.W.dtype) * p.W, d.b)
    return tuple(map(add, direction, params))


def _choose(learning_rate: Any, momentum: Array, state: KfacState, model: QuadraticModel | None) -> Float[Array, "2"]:
    """What the direction and the last update are multiplied by."""
    if learning_rate is None:
        return cast(QuadraticModel, model).minimize()
    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
    return jnp.stack([-jnp.asarray(rate, state.damping.dtype), momentum.astype(state.damping.dtype)])


def _restart(net: MLP, params: Params, told: Told, curvature: Curvature) -> Trace:
    """The trace of the error signals that the curvature is made of, by backpropagation under any rule."""
    labels = sample_labels(net, told.trace.output, told.key) if curvature == "fisher" else told.trace.labels
    return restart_of(net, params, told.trace, labels, rules.backprop, None, None, choose_start(curvature))


def choose_start(curvature: Curvature) -> Start:
    """The start whose error signals' second moments are the curvature; labels drawn from the model have the loss's."""
    return hessian_root if curvature == "gauss_newton" else output_delta


# Compiled, since a checkpoint runs an update by itself, outside a compiled epoch.
@jax.jit
def _learn(state: KfacState, trace: Trace, weights: Any, decay: Array) -> tuple[Average, Params | None]:
    """The averages with one more batch in them, unless no example of it counts."""
    trace = jax.tree.map(norms.widen, trace)  # a readout comes back in the trace's dtype
    average, moments = state.average.after(kronecker_factors(trace, weights), decay), state.moments
    if moments is not None:
        moments = _mix(decay, moments, second_moment(transform(trace, state.maps), weights))
    if weights is None:
        return average, moments
    some = (weights > 0).any()
    return jax.tree.map(lambda new, old: jnp.where(some, new, old), (average, moments), (state.average, state.moments))


@jax.jit
def _invert(average: Average, moments: Params | None, damping: Array) -> tuple[Factors, Params | None]:
    """The maps of new factors. EK-FAC's moments start anew in new eigenvectors, from K-FAC's: the factors' product."""
    if moments is None:
        return factor_power(average.factors, -1, damping), None
    U = factor_eigenvectors(average.factors)
    made = []
    for of_layer, rotate in zip(average.factors, U, strict=True):
        of_A, of_G = (jnp.maximum(jnp.sum((u @ x) * u, axis=1), 0) for x, u in zip(of_layer, rotate, strict=True))
        moment = jnp.outer(of_G, of_A)
        made.append(split(moment))
    return U, jax.tree.map(lambda x, old: x.astype(old.dtype), tuple(made), moments)


@jax.jit
def _precondition(maps: Factors, moments: Params | None, damping: Array, grads: Params) -> Params:
    """`G^-1 g A^-1`; for EK-FAC g over its second moments, both along the eigenvectors."""
    if moments is None:
        return transform_gradient(maps, grads)
    rotated = transform_gradient(maps, jax.tree.map(norms.widen, grads))
    along = jax.tree.map(lambda g, s: g / (s + damping.astype(s.dtype)), rotated, moments)
    back = transform_gradient(tuple(KroneckerFactors(A.T, G.T) for A, G in maps), along)
    return jax.tree.map(lambda d, g: d.astype(g.dtype), back, grads)


def _adapt(damping: Array, change: Array, modelled: Array, steps: int) -> Array:
    """The damping after a step that changed the cost by `change`, where the quadratic model said `modelled`."""
    ratio = change.astype(damping.dtype) / jnp.where(modelled == 0, 1, modelled).astype(damping.dtype)
    factor = jnp.where(ratio > GOOD, SHRINK**steps, jnp.where(ratio >= BAD, 1.0, SHRINK**-steps))  # NaN is bad, too
    return damping * factor.astype(damping.dtype)
