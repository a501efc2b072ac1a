"""The choice of members whose mean predicts best, one after another.

A mean's loss is the network's own. Where the outputs tell their log odds, the logarithms of `a` and of `1 - a` are
added up, so that the loss keeps its digits where members round to 0 and 1. Elsewhere the outputs are.
Source: Caruana et al. 2004, "Ensemble selection from libraries of models".
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from jaxmlp import losses, metrics, validate
from jaxmlp._forward import mean
from jaxmlp.losses import Loss
from jaxmlp.network import MLP
from jaxmlp.norms import widen
from jaxmlp.programs import compiled
from jaxmlp.training.ensembles import dtype_of, find_sound, outputs_of, read_networks
from jaxmlp.training.examples import Reading, read_validation
from jaxmlp.validate import Preprocess

if TYPE_CHECKING:
    from jaxmlp.training.result import SweepResult


class Ensemble(NamedTuple):
    """Members of a population and the share that each has in their mean."""

    members: np.ndarray  # their numbers, each once
    shares: np.ndarray  # above 0; they sum to 1


def select(
    many: "SweepResult", validation: Any, size: int, replace: bool, by: Literal["loss", "accuracy"],
    preprocess: Preprocess | None,
) -> Ensemble:  # fmt: skip
    """See `SweepResult.ensemble`."""
    size = validate.whole(size, "size")
    by = validate.one_of(by, ("loss", "accuracy"), "by")  # pyright: ignore[reportAssignmentType]
    numbers = find_sound(many)
    if not replace and size > len(numbers):
        raise ValueError(f"size is {size}, but {len(numbers)} members did not diverge, expected at most so many")
    net, log_odds = _find_form(many, numbers)
    if validation is None:
        raise ValueError("validation is None, expected examples (X, Y) to choose the members by")
    preprocess = many.preprocess if preprocess is None else preprocess
    (X, Y, weights), _ = read_validation(Reading(net, dtype_of(many), preprocess), validation)
    if by == "accuracy" and not metrics.predicts_classes(net, Y):
        raise ValueError("by is 'accuracy', but the network predicts no classes: expected 'loss'")
    outputs = widen(outputs_of(many, numbers, X, preprocess, log_odds))
    if by == "loss" and log_odds and net.loss == losses.cross_entropy and Y.ndim == 1:  # no other class counts
        outputs, Y = jnp.take_along_axis(outputs, Y[None, :, None].astype(int), 2), jnp.ones((len(Y), 1))
    total, chosen, scores = _start(log_odds, outputs[0]), [], []
    for n in range(1, size + 1):
        each = np.array(_score_each(net.loss, log_odds, by, total, outputs, jnp.asarray(n), Y, weights))
        each[np.isnan(each) | (not replace and np.isin(np.arange(len(each)), chosen))] = np.inf
        chosen.append(int(np.argmin(each)))
        scores.append(each[chosen[-1]])
        total = _add(log_odds, total, outputs[chosen[-1]])
    if not np.isfinite(scores[0]):
        raise ValueError("validation gives no member a finite loss, expected examples that the networks fit")
    kept = numbers[chosen[: int(np.argmin(scores)) + 1]]  # the first of equals
    found, first, counts = np.unique(kept, return_index=True, return_counts=True)
    order = np.argsort(first)
    return Ensemble(found[order], counts[order] / len(kept))


def _find_form(many: "SweepResult", numbers: np.ndarray) -> tuple[MLP, bool]:
    """A network with the loss of all these members; and whether their means are taken of log odds."""
    nets = list(dict.fromkeys(read_networks(many)[i] for i in numbers))
    if len(names := sorted({net.loss.name for net in nets})) > 1 or len({net.loss for net in nets}) > 1:
        raise ValueError(f"net has the losses {', '.join(names)}, expected one loss to choose the members by")
    return nets[0], nets[0].loss.of_log_odds is not None and all(net.output.log_odds for net in nets)


def _start(log_odds: bool, like: Float[Array, "m k"]) -> tuple[Float[Array, "m k"], ...]:
    """The sum of no outputs."""
    return (jnp.full_like(like, -jnp.inf),) * 2 if log_odds else (jnp.zeros_like(like),)


@compiled("log_odds")
def _add(log_odds: bool, total: tuple[Array, ...], output: Float[Array, "m k"]) -> tuple[Float[Array, "m k"], ...]:
    """The sum with one member more."""
    parts = (log_sigmoid(output), log_sigmoid(-output)) if log_odds else (output,)
    join = jnp.logaddexp if log_odds else jnp.add
    return tuple(join(*pair) for pair in zip(total, parts, strict=True))


@compiled("loss", "log_odds", "by")
def _score_each(
    loss: Loss, log_odds: bool, by: str, total: tuple[Array, ...], outputs: Float[Array, "e m k"],
    n: Array, Y: Array, weights: Array | None,
) -> Float[Array, " e"]:  # fmt: skip
    """The score of the mean of n outputs if each member in turn joins the n - 1 before it; lower is better."""

    def example(o: Float[Array, " k"], y: Array) -> Float[Array, ""]:
        y = loss.target(y, o)
        return loss.of_log_odds.f(o, y) if log_odds and loss.of_log_odds else loss.f(o, y)

    def one(output: Float[Array, "m k"]) -> Float[Array, ""]:
        joined = _add(log_odds, total, output)
        o = joined[0] - joined[1] if log_odds else joined[0] / n.astype(output.dtype)
        if by == "loss":
            return mean(jax.vmap(example)(o, Y), weights)
        right = metrics.classes(jax.nn.sigmoid(o) if log_odds else o) == metrics.classes(Y)
        return -mean(right.astype(o.dtype), weights)

    return jax.lax.map(one, outputs)
