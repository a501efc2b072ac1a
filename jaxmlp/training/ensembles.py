"""The members of a population as one predictor: their outputs, the mean of these, and how far they disagree.

Sources: Hansen and Salamon 1990, "Neural network ensembles"; Lakshminarayanan et al. 2017, "Simple and scalable
predictive uncertainty estimation using deep ensembles".
"""

import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jaxtyping import Array, Float

from jaxmlp import validate
from jaxmlp._forward import network_inputs, propagate
from jaxmlp.activations import Softmax
from jaxmlp.chunks import map_chunks
from jaxmlp.network import MLP, Params
from jaxmlp.norms import wide, widen
from jaxmlp.programs import compiled
from jaxmlp.validate import Preprocess

if TYPE_CHECKING:
    from jaxmlp.training.result import SweepResult

AT_ONCE = 2**24  # numbers that the widest layer holds at once, of so many members and examples

Members = Sequence[int] | np.ndarray | None


class Disagreement(NamedTuple):
    """The mean of members' outputs and how far they are apart, each member by its share."""

    mean: Float[Array, "m k"]
    spread: Float[Array, "m k"]  # the variance, sum_e share_e (y_hat_e - mean)^2
    mutual_information: Float[Array, " m"] | None  # H(mean) - sum_e share_e H(y_hat_e) in nats; None without classes


class _Moments(NamedTuple):
    """Sums over members so far."""

    share: Float[Array, ""]
    mean: Float[Array, "m k"]
    squares: Float[Array, "m k"]  # sum_e share_e (y_hat_e - mean)^2
    entropy: Float[Array, " m"]  # sum_e share_e H(y_hat_e)


def predict(many: "SweepResult", X: Any, members: Members, preprocess: Preprocess | None) -> Float[Array, "e m k"]:
    """See `SweepResult.predict`."""
    numbers = read_members(many, members)
    return outputs_of(many, numbers, *_read_inputs(many, numbers, X, preprocess), log_odds=False)


def disagree(
    many: "SweepResult", X: Any, members: Members, shares: Any, preprocess: Preprocess | None, entropy: bool = True
) -> Disagreement:
    """See `SweepResult.disagreement`; without `entropy` its last entry is None."""
    numbers = find_sound(many) if members is None else read_members(many, members)
    shares = read_shares(shares, len(numbers))
    numbers, shares = numbers[shares > 0], shares[shares > 0]
    X, preprocess = _read_inputs(many, numbers, X, preprocess)
    nets = read_networks(many)
    kinds = {_entropy_of(nets[i]) for i in numbers} if entropy else {None}
    entropy_of = kinds.pop() if len(kinds) == 1 else None
    so_far = None
    for places, outputs in _parts(many, numbers, X, preprocess, log_odds=False):
        own = np.zeros(len(outputs))
        own[: len(places)] = shares[places]  # 0 for the members that fill the part up
        so_far = _join(entropy_of, so_far, outputs, jnp.asarray(own, wide(outputs.dtype)))
    assert so_far is not None
    narrow = lambda values: values.astype(dtype_of(many))
    if entropy_of is None:
        return Disagreement(narrow(so_far.mean), narrow(so_far.squares), None)
    information = jnp.maximum(entropy_of(so_far.mean) - so_far.entropy, 0)  # rounding may leave a negative
    return Disagreement(narrow(so_far.mean), narrow(so_far.squares), narrow(information))


# What the arguments must be.


def read_networks(many: "SweepResult") -> Sequence[MLP]:
    """One network for each member."""
    E, nets = len(many.scores), many.net
    if nets is None:
        raise ValueError("net is None: this result does not know its network, expected dataclasses.replace(many, net=)")
    if not isinstance(nets, MLP) and len(nets) != E:
        raise ValueError(f"net has {len(nets)} networks, expected one for each of the {E} members")
    return (nets,) * E if isinstance(nets, MLP) else nets


def read_member(i: Any, E: int, name: str = "member") -> int:
    """A member's number, counted from 0."""
    i = validate.whole(i, name, least=-E)
    if i >= E:
        raise ValueError(f"{name} is {i}, expected 0 to {E - 1}, or -1 to {-E} from the end")
    return range(E)[i]


@jax.jit
def take_member(tree: Any, i: int) -> Any:
    """One member of a population's arrays, in one program."""
    return jax.tree.map(lambda array: array[i], tree)


def read_members(many: "SweepResult", given: Any) -> np.ndarray:
    """The members' numbers, counted from 0; all of them for None."""
    E = len(many.scores)
    if given is None:
        return np.arange(E)
    if not isinstance(given, Sequence | np.ndarray | jax.Array) or isinstance(given, str) or np.ndim(given) != 1:
        raise ValueError(f"members is {given!r}, expected the numbers of members, such as [0, 2]")
    if not len(given):
        raise ValueError("members is empty, expected the number of at least one member")
    if np.asarray(given).dtype == bool:
        raise ValueError(
            f"members is {reprlib.repr(given)}, expected the numbers of members, such as np.flatnonzero of these"
        )
    return np.asarray([read_member(i, E, f"members[{at}]") for at, i in enumerate(given)])


def read_shares(given: Any, n: int) -> np.ndarray:
    """A share for each of n members, which sum to 1; equal ones for None."""
    if given is None:
        return np.full(n, 1 / n)
    validate.numbers(given, "shares", least=0)
    shares = np.asarray(given, float)
    if shares.shape != (n,):
        raise ValueError(f"shares has shape {shares.shape}, expected one share for each of the {n} members")
    if not shares.any():
        raise ValueError("shares are all 0, expected some above 0")
    return shares / shares.sum()


def find_sound(many: "SweepResult") -> np.ndarray:
    """The numbers of the members that did not diverge."""
    numbers = np.flatnonzero(~many.diverged)
    if not len(numbers):
        raise ValueError(f"all {len(many.diverged)} members diverged, expected at least one that did not")
    return numbers


def _read_inputs(
    many: "SweepResult", numbers: np.ndarray, X: Any, preprocess: Preprocess | None
) -> tuple[Array, Preprocess | None]:
    """Examples that fit the networks, and what turns them into inputs."""
    preprocess = many.preprocess if preprocess is None else preprocess
    return validate.inputs(read_networks(many)[numbers[0]], X, dtype_of(many), preprocess), preprocess


def dtype_of(many: "SweepResult") -> jnp.dtype:
    params = many.params[0] if isinstance(many.params, list) else many.params
    return jnp.dtype(params[0].W.dtype)


# What the members predict.


def outputs_of(
    many: "SweepResult", numbers: np.ndarray, X: Array, preprocess: Preprocess | None, log_odds: bool
) -> Float[Array, "e m k"]:
    """The outputs of members, or their log odds, in the order of `numbers`."""
    parts = [(places, made[: len(places)]) for places, made in _parts(many, numbers, X, preprocess, log_odds)]
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    return jnp.concatenate([made for _, made in parts])[order]


def _parts(
    many: "SweepResult", numbers: np.ndarray, X: Array, preprocess: Preprocess | None, log_odds: bool
) -> Iterator[tuple[np.ndarray, Float[Array, "e m k"]]]:
    """The outputs of some members at a time, with their places in `numbers`; the last of them may be copies.

    Members of one network share a program. A part is as large as `AT_ONCE` allows.
    """
    nets = read_networks(many)
    distinct = list(dict.fromkeys(nets[i] for i in numbers))
    if len(widths := sorted({net.sizes[-1] for net in distinct})) > 1:
        raise ValueError(f"members have {' and '.join(map(str, widths))} outputs, expected as many in each")
    for net in distinct:
        places = np.flatnonzero([nets[i] == net for i in numbers])
        rows = min(len(X), max(1, AT_ONCE // max(net.sizes)))
        count = math.ceil(len(places) * rows * max(net.sizes) / AT_ONCE)
        size = math.ceil(len(places) / count)
        for start in range(0, len(places), size):
            part = places[start : start + size]
            filled = np.pad(numbers[part], (0, size - len(part)), mode="edge")
            yield part, _predict_each(net, preprocess, rows, log_odds, _take(many.params, filled), X)


def _take(params: Any, numbers: np.ndarray) -> Params:
    """The parameters of some members, stacked."""
    if isinstance(params, list):
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *[params[i] for i in numbers])
    if isinstance(params[0].W, np.ndarray):
        return jax.tree.map(lambda array: array[numbers], params)
    return _take_on_device(params, numbers)


@jax.jit
def _take_on_device(params: Params, numbers: Array | np.ndarray) -> Params:
    return jax.tree.map(lambda array: array[numbers], params)


@compiled("net", "preprocess", "rows", "log_odds")
def _predict_each(
    net: MLP, preprocess: Preprocess | None, rows: int, log_odds: bool, params: Params, X: Array
) -> Float[Array, "e m k"]:
    """What each member makes of the examples, `rows` of them at a time."""

    def one(params: Params, x: Float[Array, " i"]) -> Float[Array, " k"]:
        y_hat, tape = propagate(net, params, x)
        return net.output.log_odds.f(tape.pre_activations[-1]) if log_odds and net.output.log_odds else y_hat

    def chunk(X: Array) -> Float[Array, "m e k"]:
        each = jax.vmap(lambda x: jax.vmap(lambda p: one(p, x))(params))
        return each(network_inputs(X, preprocess, params[0].W.dtype))

    return map_chunks(chunk, X, rows).swapaxes(0, 1)


# The disagreement.


@compiled("entropy_of")
def _join(
    entropy_of: Callable | None, so_far: _Moments | None, outputs: Float[Array, "e m k"], shares: Float[Array, " e"]
) -> _Moments:
    """The moments with more members among them. Source: Chan et al. 1979, for the pairwise variance."""
    outputs, share = widen(outputs), shares.sum()
    own = jnp.tensordot(shares, outputs, 1) / share
    squares = jnp.tensordot(shares, (outputs - own[None]) ** 2, 1)
    entropy = jnp.zeros(outputs.shape[1], outputs.dtype) if entropy_of is None else shares @ entropy_of(outputs)
    if so_far is None:
        return _Moments(share, own, squares, entropy)
    total, apart = so_far.share + share, own - so_far.mean
    return _Moments(
        total,
        so_far.mean + share / total * apart,
        so_far.squares + squares + so_far.share * share / total * apart**2,
        so_far.entropy + entropy,
    )


def _of_classes(p: Float[Array, "*m k"]) -> Float[Array, "*m"]:
    """`H = -sum_k p log p`, of a distribution over classes."""
    return entr(p).sum(-1)


def _of_units(a: Float[Array, "*m k"]) -> Float[Array, "*m"]:
    """`H = -sum_k a log a + (1 - a) log(1 - a)`, of outputs that are 1 or 0 each by itself."""
    return (entr(a) + entr(1 - a)).sum(-1)


def _entropy_of(net: MLP) -> Callable | None:
    """The entropy of a network's outputs; None where they are no probabilities."""
    if isinstance(net.output, Softmax) or net.loss.targets == "distribution":
        return _of_classes
    return _of_units if net.loss.targets == "unit" else None
