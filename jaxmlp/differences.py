"""Central differences of the cost: the checker's third route to a gradient, in float64.

A step that crosses a kink measures no derivative. An activation names its kinks. Where autodiff and the gradient by
hand agree against the difference, finer steps look for a kink that nothing names.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from jaxmlp._forward import cost, forward
from jaxmlp.check_report import Comparison, compare
from jaxmlp.programs import compiled

TOLERANCE = 1e-7
FINER = 8  # the ratio of two steps that look for a kink
AT_ONCE = 16  # entries whose costs are computed together


def compare_differences(net, params, problem, grads, step, entries, wrong) -> list[Comparison]:
    """Compares entries drawn from each array with central differences.

    Args:
        net, params, problem: the network, its parameters and `(X, Y, weights, masks)`, all in float64.
        grads: the gradient by hand.
        step: of the differences.
        entries: at most this many entries of each array.
        wrong: the names of arrays that autodiff contradicts; in these no kink is looked for.
    """
    rng = np.random.default_rng(0)
    leaves = jax.tree.leaves(params)
    drawn = [np.sort(rng.permutation(leaf.size)[:entries]) for leaf in leaves]
    starts = np.cumsum([0] + [leaf.size for leaf in leaves])
    index = np.concatenate([start + d for start, d in zip(starts[:-1], drawn, strict=True)])
    padded = jnp.asarray(np.pad(index, (0, -len(index) % AT_ONCE), "edge"))  # a remainder would be compiled once more
    J = float(cost(net, params, problem[0], problem[1], weights=problem[2], masks=problem[3]))
    roundoff = 8 * 2.0**-52 / step * (1 + abs(J))
    take = lambda step: [np.asarray(a)[: len(index)] for a in _take_differences(net, params, *problem, padded, step)]
    ends = np.cumsum([len(d) for d in drawn])
    split = lambda taken: list(zip(*(np.split(a, ends[:-1]) for a in taken), strict=True))
    names = [(layer, array) for layer in range(1, net.depth + 1) for array in ("W", "b")]

    def compare_array(k, left_out):
        (layer, array), shape, keep = names[k], leaves[k].shape, ~left_out
        got = getattr(grads[layer - 1], array)
        got = got.ravel()[drawn[k][keep]] if got.shape == shape else got
        where = [tuple(map(int, np.unravel_index(i, shape))) for i in drawn[k]]
        kept, straddling = ([w for w, out in zip(where, left_out, strict=True) if out == is_out] for is_out in (0, 1))
        return compare(layer, array, got, taken[k][0][keep], roundoff * np.sqrt(keep.sum()), TOLERANCE, "differences",
                       kept, tuple(straddling))  # fmt: skip

    taken = split(take(step))
    rows = [compare_array(k, crosses) for k, (_, _, crosses) in enumerate(taken)]
    doubtful = [k for k, row in enumerate(rows) if not row.passed and row.name not in wrong]
    if doubtful:
        finer, finest = split(take(step / FINER)), split(take(step / FINER**2))
        for k in doubtful:
            got = getattr(grads[names[k][0] - 1], names[k][1]).ravel()[drawn[k]]
            hidden = _find_hidden_kinks(got, J, taken[k], finer[k], finest[k], step, roundoff)
            rows[k] = compare_array(k, taken[k][2] | hidden)
    return rows


def _find_hidden_kinks(got, J, coarse, fine, finest, step, roundoff) -> np.ndarray:
    """Entries whose step crosses a kink, beside the parameters or at them, so that the difference is no derivative.

    Beside: a finer difference equals `got`. At them: the slopes on the two sides stay apart as the step shrinks.
    """
    near = lambda d, at: np.abs(got - d) <= TOLERANCE * np.abs(d) + at
    beside = near(fine[0], FINER * roundoff) | near(finest[0], FINER**2 * roundoff)
    right = lambda taken, by: (taken[1] - J) / by
    gap = lambda taken, by: 2 * np.abs(right(taken, by) - taken[0])  # the slope on the left is 2 d - right
    stays = gap(fine, step / FINER) > gap(coarse, step) / 2 + 100 * FINER * roundoff
    return ~near(coarse[0], roundoff) & (beside | stays)


def central_difference(f: Callable[[Array], Array], theta: Array, step: float | Array) -> Array:
    """`(f(theta + step) - f(theta - step)) / (2 step)`.

    Its error falls as `step^2`; rounding adds an error that grows as `1 / step`.

    Example:
        >>> float(jm.check.central_difference(lambda t: t**2, jnp.asarray(3.0), 0.5))
        6.0
    """
    return (f(theta + step) - f(theta - step)) / (2 * step)


@compiled("net")
def _take_differences(net, params, X, Y, weights, masks, index, step):
    """For each entry `index` of the flat parameters: the central difference, the cost a step above, and whether the
    step crosses a kink that an activation names."""
    flat, unravel = ravel_pytree(params)

    def find_sides(params):
        zs = jax.vmap(lambda x, masks: forward(net, params, x, masks)[1].pre_activations)(X, masks)
        return [z > kink for z, f in zip(zs, net.activations, strict=True) for kink in f.kinks]

    def take_difference(entry):
        shifted = lambda by: unravel(flat.at[entry].add(by))
        J = lambda by: cost(net, shifted(by), X, Y, weights=weights, masks=masks)
        both = zip(find_sides(shifted(step)), find_sides(shifted(-step)), strict=True)
        crosses = jnp.any(jnp.array([jnp.any(up != down) for up, down in both], bool))
        zero = jnp.zeros(())
        return central_difference(J, zero, step), J(zero + step), crosses  # XLA computes the cost above once

    return jax.lax.map(take_difference, index, batch_size=AT_ONCE)
