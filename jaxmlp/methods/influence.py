"""Influence: how much a test example's loss would rise if a training example were left out.

`score = share g_train . (H + damping I)^-1 g_test`, with H the curvature of the training cost, and share the training
example's part of its mean, `1 / n_train`. Each method is a map of the training examples' pairs and a tensor, or a map,
for the test examples; the gradient of no training example is formed. Sources: Pruthi et al. 2020, "Estimating training
data influence by tracing gradient descent"; Koh and Liang 2017, "Understanding black-box predictions via influence
functions"; Grosse et al. 2023, "Studying large language model generalization with influence functions"; Park et al.
2023, "TRAK"; Choe et al. 2024, "What is your data worth to GPT?", for projections of both factors (LoGra).
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, Shaped

from jaxmlp import validate
from jaxmlp.chunks import map_chunks
from jaxmlp.doors import article, check_network
from jaxmlp.maps import transform
from jaxmlp.methods.curvature_blocks import check_size
from jaxmlp.methods.inverse_curvature import How, Method, Sides, leave_trace, prepare
from jaxmlp.methods.kfac import Curvature
from jaxmlp.network import MLP, Params
from jaxmlp.norms import widen
from jaxmlp.programs import compiled
from jaxmlp.readouts import layer_grams
from jaxmlp.trace import Trace, shares, with_constant
from jaxmlp.training.reporting import show
from jaxmlp.validate import Examples, Given, Preprocess

METHODS = ("tracin", "kfac", "ekfac", "projected", "exact")
ENTRIES = 2**26  # of the largest array that scores are made of


def influence(
    net: MLP,
    params: Params | Sequence[Params],
    train: tuple[Num[Given, "m ..."], Shaped[Given, "m ..."]],
    test: tuple[Num[Given, "n ..."], Shaped[Given, "n ..."]],
    method: Method = "ekfac",
    *,
    damping: float | None = None,
    curvature: Curvature = "gauss_newton",
    key: PRNGKeyArray | None = None,
    size: int | None = None,
    terms: int | None = None,
    rates: Sequence[float] | Num[Given, " t"] | None = None,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
    chunk_size: int = 1024,
    by_layer: bool = False,
    progress: bool = True,
) -> Float[Array, "*K m n"]:
    """How much each test example's loss would rise if each training example were left out, to first order.

    `g_train . (H + damping I)^-1 g_test / n_train`: positive where the training example helps, negative where it
    harms. H is the mean curvature over the training examples:

    - "tracin": none. The score is `rate g_train . g_test / n_train`, the fall of the test example's loss by the
      training example's part of a gradient step.
    - "kfac": `G (x) A` of each layer, damped as in `factor_power`.
    - "ekfac": the same eigenvectors, with the exact second moments along them.
    - "projected": the exact matrix of gradients whose `delta` and `(a, 1)` are each projected at random.
    - "exact": the exact matrix, for small networks.

    Args:
        params: of one network, of several stacked along a first axis (as `sweep` gives them), or a list of such
            parameters: the result is then the mean over them. Those of a member that diverged are its last good ones,
            and count: `jax.tree.map(lambda a: a[~many.diverged], many.params)` leaves them out.
        train: the training examples `(X, Y)`, as `backprop` takes them.
        test: the test examples `(X, Y)`.
        damping: at least 0, and above where H has no inverse; unless given a tenth of the mean of H's diagonal, in
            each layer for itself.
        curvature: error signals start from rows of the root of the loss's Hessian ("gauss_newton"), from labels drawn
            from the model ("fisher"), or from the true labels ("empirical"). The rows draw nothing and cost a recursion
            for each output; drawn labels cost one in all.
        key: for "projected", and for labels drawn from the model.
        size: the rows of the projections of "projected", 16 unless given; a narrower layer is not projected.
        terms: for "ekfac": the division by second moments is exact, and costs the weights for each score; with terms it
            becomes a sum of so many products, which cost the units. The correlation with the exact scores of a trained
            layer of 256 units for MNIST was 0.997 with 4 and 0.998 with 8.
        rates: for "tracin" with several parameters, the learning rate of each: the result is then `sum_t rate_t
            score_t`, as with the weights after several epochs of one run.
        weights: a weight of at least 0 for each training example, `(m,)`; shares of their sum replace `1 / n_train`.
        preprocess: a function of one example that gives the network's input.
        chunk_size: training examples at a time.
        by_layer: whether the layers' parts of the scores come apart, `(K, m, n)`; their sum is the score.
        progress: whether to report each chunk, as `fit` does each epoch.
    Returns:
        `(n_train, n_test)`.
    Raises:
        ValueError: where an argument does not fit, or parameters give scores that are not finite.
    Example:
        >>> scores = jm.influence(net, params, (X[:16], Y[:16]), (X[16:], Y[16:]), progress=False)
        >>> scores.shape
        (16, 4)
        >>> harmful = jnp.argsort(scores[:, 0])  # the first helps the first test example least
        >>> run = lambda n: jm.fit(net, params, (X[:16], Y[:16]), optimizer=optax.sgd, hyper={"learning_rate": 0.1},
        ...                        epochs=n, key=key, checkpoints="run", progress=False)
        >>> kept = [run(n).last_params for n in (1, 2, 4)]  # one run: each call goes on from the one before
        >>> jm.influence(net, kept, (X[:16], Y[:16]), (X[16:], Y[16:]), "tracin", rates=[0.1, 0.1, 0.1],
        ...              progress=False).shape
        (16, 4)
    """
    members = _read_members(net, params)
    dtype = _find_dtype(net, members)
    training = _read_examples(net, dtype, train, "train", preprocess, weights)
    tests = _read_examples(net, dtype, test, "test", preprocess)
    how = _read_method(net, How(method, damping, curvature, key, size, terms))  # pyright: ignore[reportArgumentType]
    factors = _read_rates(rates, method, len(members))
    m, chunk_size = len(training.X), validate.whole(chunk_size, "chunk_size")
    share = np.full(m, 1 / m) if training.weights is None else np.asarray(shares(training.weights), np.float64)
    lead = (net.depth,) if validate.flag(by_layer, "by_layer") else ()
    scores = np.zeros((*lead, m, len(tests.X)), widen(jnp.zeros((), dtype)).dtype)
    chunk = min(chunk_size, m)
    with show(len(members) * -(-m // chunk), "chunk", progress) as report:
        done = 0
        for e, (member, factor) in enumerate(zip(members, factors, strict=True)):
            sides = prepare(net, member, training, tests, how, preprocess, chunk)
            for first in range(0, m, chunk):
                begun = time.perf_counter()
                rows = slice(min(first, m - chunk), min(first + chunk, m))  # all chunks of one size: one program
                made = _score(net, member, training.X[rows], training.Y[rows], sides, preprocess, by_layer)
                new = slice(first, rows.stop)
                scores[..., new, :] += (factor * share[new, None]) * np.asarray(made)[..., first - rows.start :, :]
                done += 1
                report(done, {"seconds": time.perf_counter() - begun})
            if not np.isfinite(scores).all():
                raise _explain(how, e)
    return jnp.asarray(scores)


def _explain(how: How, e: int) -> ValueError:
    """The error for scores of network e that are not finite."""
    if how.damping is not None and float(how.damping) == 0:
        return ValueError("damping is 0, but the curvature has no inverse here: expected damping above 0")
    return ValueError(f"params: network {e} gives scores that are not finite, expected networks that did not diverge")


@compiled("net", "preprocess", "by_layer")
def _score(net, params, X, Y, sides, preprocess, by_layer):
    """The scores of a chunk of training examples, `(m, n)` or `(K, m, n)`."""
    trace = leave_trace(net, params, X, Y, preprocess)
    trace = trace if sides.maps is None else transform(trace, sides.maps)

    def scores_of(queries):  # (n, K, m) or (n, m)
        each = jnp.stack([layer.T for layer in _score_layers(trace, queries, sides)], axis=1)
        return each if by_layer else each.sum(1)

    m, widths = len(X), zip(trace.deltas, trace.inputs, strict=True)
    if (sides.divide is None and isinstance(sides.queries, Trace)) or sides.terms is not None:
        entries = m  # of the largest array, for each query
    else:
        entries = max(o * (i + 1) + m * min(o, i + 1) for o, i in ((d.shape[1], a.shape[1]) for d, a in widths))
    return jnp.moveaxis(map_chunks(scores_of, sides.queries, max(1, ENTRIES // entries)), 0, -1)


def _score_layers(trace: Trace, queries: Any, sides: Sides) -> list[Float[Array, "m n"]]:
    """The scores of each layer, for some of the queries."""
    if sides.divide is None and sides.terms is None:
        if isinstance(queries, Trace):
            return layer_grams(trace, queries)
        return [_contract(trace, l, widen(Q)) for l, Q in enumerate(queries)]
    if sides.terms is not None:
        return [_sum_products(trace, queries, l, *both) for l, both in enumerate(sides.terms)]
    made = []
    for l, divisor in enumerate(sides.divide or ()):
        delta, a = widen(queries.deltas[l]), with_constant(queries, l)
        made.append(_contract(trace, l, delta[:, :, None] * a[:, None, :] / divisor[None]))
    return made


def _contract(trace: Trace, l: int, Q: Float[Array, "n o i"]) -> Float[Array, "m n"]:
    """`delta . Q a~`. The wider side is summed first: that leaves the smaller array."""
    delta, a = widen(trace.deltas[l]), with_constant(trace, l)
    if a.shape[1] >= delta.shape[1]:
        return jnp.einsum("mno,mo->mn", jnp.einsum("noi,mi->mno", Q, a), delta)
    return jnp.einsum("mni,mi->mn", jnp.einsum("noi,mo->mni", Q, delta), a)


def _sum_products(
    trace: Trace, queries: Trace, l: int, of_delta: Float[Array, "r o"], of_a: Float[Array, "r i"]
) -> Float[Array, "m n"]:
    """`sum_r (delta of_delta_r . delta') (a~ of_a_r . a~')`."""
    delta, delta_ = widen(trace.deltas[l]), widen(queries.deltas[l])
    a, a_ = with_constant(trace, l), with_constant(queries, l)

    def add(total, both):
        u, v = both
        return total + ((delta * u[None]) @ delta_.T) * ((a * v[None]) @ a_.T), None

    return jax.lax.scan(add, jnp.zeros((len(a), len(a_)), a.dtype), (of_delta, of_a))[0]


def _read_members(net: MLP, given: Any) -> list[Params]:
    """The parameters of each network."""
    check_network(net)
    several = isinstance(given, list | tuple) and len(given) and not hasattr(given[0], "W")
    return [member for one in (given if several else [given]) for member in _unstack(one)]


def _unstack(given: Any) -> list[Any]:
    """The parameters along the first axis of their arrays, where they have one more than a network's."""
    first = given[0] if isinstance(given, list | tuple) and len(given) else None
    if np.ndim(getattr(first, "W", 0)) != 3:
        return [given]
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(given)}
    if len(lengths) > 1 or lengths == {(0,)}:
        raise ValueError(f"params have first axes of {sorted(lengths)}, expected one entry for each network")
    return [jax.tree.map(lambda leaf, e=e: leaf[e], given) for e in range(lengths.pop()[0])]


def _find_dtype(net: MLP, members: list[Params]) -> Any:
    """The dtype that all parameters share."""
    dtypes = {validate.params(net, member) for member in members}
    if len(dtypes) > 1:
        raise ValueError(f"params have dtype {', '.join(sorted(map(str, dtypes)))}, expected one floating-point type")
    finite = lambda member: all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(member))
    if lost := [e for e, member in enumerate(members) if not finite(member)]:
        raise ValueError(
            f"params of network {', '.join(map(str, lost))} of {len(members)} hold NaN or infinity, expected networks "
            "that did not diverge"
        )
    return dtypes.pop()


def _read_examples(
    net: MLP, dtype: Any, given: Any, name: str, preprocess: Preprocess | None, weights: Any = None
) -> Examples:
    if not isinstance(given, tuple | list) or len(given) != 2:
        got = article(type(given).__name__) + (f" of {len(given)}" if isinstance(given, tuple | list) else "")
        raise ValueError(f"{name} is {got}, expected a tuple (X, Y)")
    X = validate.inputs(net, given[0], dtype, preprocess, f"{name} X")
    Y = validate.targets(net, given[1], len(X), f"{name} Y")
    return Examples(X, Y, None if weights is None else validate.example_weights(weights, len(X), dtype))


def _read_method(net: MLP, given: How) -> How:
    """The method, if it takes what is given and has what it needs."""
    method, damping, curvature, key, size, terms = given
    validate.one_of(method, METHODS, "method")
    validate.one_of(curvature, ("gauss_newton", "fisher", "empirical"), "curvature")
    if method == "tracin" and damping is not None:
        raise ValueError(f"damping is {damping}, but method is 'tracin', which has no curvature: expected none")
    for name, value, owner in (("size", size, "projected"), ("terms", terms, "ekfac")):
        if value is not None and method != owner:
            raise ValueError(f"{name} is {value}, but method is {method!r}: expected none, or {owner!r}")
    if key is None and (method == "projected" or (method != "tracin" and curvature == "fisher")):
        raise ValueError(f"key is None, but method {method!r} with curvature {curvature!r} draws: expected a key")
    size = validate.whole(16 if size is None else size, "size")
    small = size if method == "projected" else math.inf
    if method in ("projected", "exact"):
        check_size(sum(int(min(o, small) * min(i + 1, small)) for o, i in net.shapes), "method", method)
    return How(
        method,
        None if damping is None else jnp.asarray(validate.number(damping, "damping", least=0)),
        curvature,
        None if key is None else validate.key(key),
        size,
        None if terms is None else validate.whole(terms, "terms"),
    )


def _read_rates(given: Any, method: str, n: int) -> list[float]:
    """What each network's scores are multiplied by: its rate, or a share of their mean."""
    if given is None:
        return [1 / n] * n
    if method != "tracin":
        raise ValueError(f"rates is {given!r}, but method is {method!r}: expected none, or 'tracin'")
    rates = validate.numbers(given, "rates", least=0)
    if rates.shape != (n,):
        raise ValueError(f"rates has shape {rates.shape}, expected one for each of the {n} parameters")
    return [float(rate) for rate in rates]
