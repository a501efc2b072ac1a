"""The maximal-update parametrization (mu-P): the best learning rate of a narrow network is that of a wide one.

A base network is the one on which rates were tuned. Let r be a layer's width over its width in the base network, and 1
for inputs and outputs. Each step should move the z of each layer as far as in the base network, whatever the widths.
With output weights of order `1 / n_in`, entries of a are of order 1 and those of delta below the output of order
`1 / n_out`. SGD's update `-rate delta a^T` moves z by `rate delta (a . a')`, of order `rate n_in / n_out`; an update by
Adam has entries of order `rate` and moves z by `rate n_in`. So variances and rates are the base network's times

|                  | input weights | hidden weights | output weights | hidden biases | output biases |
|------------------|---------------|----------------|----------------|---------------|---------------|
| variance         | 1             | `1 / r_in`     | `1 / r_in^2`   |               |               |
| rate as for SGD  | `r_out`       | `r_out / r_in` | `1 / r_in`     | `r_out`       | 1             |
| rate as for Adam | 1             | `1 / r_in`     | `1 / r_in`     | 1             | 1             |

Source: Yang, Hu et al. 2021, "Tensor programs V: tuning large neural networks via zero-shot hyperparameter transfer",
table 3, the form without a multiplier of the output; table 8 is an equal form with one. There all hidden widths grow
alike, so hidden weights keep their rate for SGD; `r_out / r_in` for widths of their own is that of Yang, Simon and
Bernstein 2023, "A spectral condition for feature learning".
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import optax

from jaxmlp import validate
from jaxmlp.doors import takes_network
from jaxmlp.initializers import VARIANCES, ByLayer, Normal
from jaxmlp.methods.gauss_newton import GaussNewtonState
from jaxmlp.methods.kfac import KfacState
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.optimizers import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)  # a transformation stays one, a factory, too

# What multiplies the rates of a layer's W and b.
RATES: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "adam": lambda r_in, r_out: (1 / r_in, 1.0),
    "sgd": lambda r_in, r_out: (r_out / r_in, r_out),
}


# The states of optimizers that choose steps by the curvature, which no rates by layer fit.
BY_CURVATURE = {KfacState: "kfac", GaussNewtonState: "gauss_newton"}


class MupFactory(NamedTuple):
    """A factory whose optimizers have rates by layer; equal ones share a compiled program."""

    net: MLP
    rates: tuple[tuple[float, float], ...]
    make: Callable[..., optax.GradientTransformation]

    def __call__(self, *given: Any, **hyper: Any) -> optax.GradientTransformation:
        made = self.make(*given, **hyper)
        if not isinstance(made, optax.GradientTransformation):
            raise ValueError(f"optimizer makes a {type(made).__name__}, expected an optax transformation")
        return _with_rates(self.net, self.rates, made)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the factory inside, so that a search knows what it takes."""
        return inspect.signature(self.make)


@takes_network
def mup(net: MLP, base_width: int | Sequence[int], optimizer: Kind, rates: Literal["adam", "sgd"] = "adam") -> Kind:
    """An optimizer with a learning rate for each layer, by mu-P: `update = factor (update of the optimizer)`.

    The rate that is best for the base network is then about the best for wider ones. The initial weights belong to it:
    see `mup_weights`. At the base width every factor is 1. Adam's `eps` should stay below the entries of the gradient,
    which shrink as 1 / width. A weight decay inside the optimizer is multiplied, too; one that all widths share goes
    behind, as in `optax.chain(jm.mup(..), optax.add_decayed_weights(-rate * decay))`.

    Args:
        net: the network that is trained.
        base_width: the width of the hidden layers of the base network, or one for each of them.
        optimizer: an optax transformation, or a factory such as `optax.adam`.
        rates: how they depend on the width. "adam": for optimizers whose update keeps its size when the gradient is
            scaled, such as Adam, RMSprop, Adagrad and Lion. "sgd": for those whose update is linear in the gradient,
            such as SGD with momentum. `kfac` and `gauss_newton` are neither: they choose steps by the curvature.
    Returns:
        An optax transformation; of a factory a factory, whose arguments are those of the first: `hyper` may vary them.
    Raises:
        ValueError: where an argument does not fit; and in training, where the parameters are of another network, or the
            optimizer has `kfac` or `gauss_newton` inside.
    Example:
        >>> wide = jm.MLP((784, 256, 256, 10), output="softmax", loss="cross_entropy")
        >>> start = jm.init(wide, key, weights=jm.mup_weights(wide, 64))
        >>> adam = jm.mup(wide, 64, optax.adam)
        >>> result = jm.fit(wide, start, (X, Y), optimizer=adam, hyper={"learning_rate": 1e-3}, epochs=2, key=key,
        ...                 progress=False)
        >>> bool(result.history["cost"][-1] < result.history["cost"][0])
        True

    Source: Yang, Hu et al. 2021, table 3.
    """
    validate.one_of(rates, tuple(RATES), "rates")
    r = [n / base for n, base in zip(net.sizes, _base_sizes(net, base_width), strict=True)]
    each = tuple(map(RATES[rates], r[:-1], r[1:]))
    if isinstance(optimizer, optax.GradientTransformation):
        return _with_rates(net, each, optimizer)  # pyright: ignore[reportReturnType]
    if not callable(optimizer):
        raise ValueError(
            f"optimizer is {optimizer!r}, expected an optax transformation, or a factory such as optax.adam"
        )
    if rates == "adam" and getattr(optimizer, "func", optimizer) is optax.sgd:
        raise ValueError("rates is 'adam' with optax.sgd, expected 'sgd'")
    return MupFactory(net, each, optimizer)  # pyright: ignore[reportReturnType]


@takes_network
def mup_weights(net: MLP, base_width: int | Sequence[int], weights: str = "he") -> ByLayer:
    """The initial weights that belong to `mup`: the variances are those of the base network, by mu-P's factors.

    Args:
        net: the network whose weights are drawn.
        base_width: the width of the hidden layers of the base network, or one for each of them.
        weights: how the base network draws its weights, by a name that `jm.init` knows.
    Returns:
        Initializers, one for each layer: `weights` of `jm.init`, and `initial` of `sweep`.
    Raises:
        ValueError: where an argument does not fit; and in `init` of another network.
    Example:
        >>> wide = jm.MLP((784, 256, 256, 10), output="softmax", loss="cross_entropy")
        >>> standard = jm.init(wide, key)
        >>> params = jm.init(wide, key, weights=jm.mup_weights(wide, 64))
        >>> [round(float(layer.W.std() / other.W.std()), 3) for layer, other in zip(params, standard)]
        [1.0, 1.0, 0.5]

    Source: Yang, Hu et al. 2021, table 3.
    """
    variance = VARIANCES[validate.one_of(weights, tuple(VARIANCES), "weights")]
    base = _base_sizes(net, base_width)
    powers = (*[1] * (net.depth - 1), 2)  # of 1 / r_in, which is 1 for the inputs
    layers = zip(base[:-1], base[1:], net.sizes[:-1], powers, strict=True)
    each = (Normal(variance(b_in, b_out) * (b_in / n_in) ** power) for b_in, b_out, n_in, power in layers)
    return ByLayer(net.sizes, tuple(each))


def _base_sizes(net: MLP, base_width: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes of the base network."""
    if not isinstance(base_width, tuple | list):
        base_width = [validate.whole(base_width, "base_width")] * (net.depth - 1)
    if len(base_width) != net.depth - 1:
        raise ValueError(
            f"base_width has {len(base_width)} widths, expected {net.depth - 1}, one for each hidden layer"
        )
    hidden = (validate.whole(n, f"base_width[{index}]") for index, n in enumerate(base_width))
    return (net.sizes[0], *hidden, net.sizes[-1])


def _with_rates(
    net: MLP, rates: tuple[tuple[float, float], ...], optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Params:
        validate.params(net, updates)
        times = lambda factor, u: u if factor == 1 else factor * u
        return tuple(Layer(times(of_W, u.W), times(of_b, u.b)) for (of_W, of_b), u in zip(rates, updates, strict=True))

    chained = optax.chain(optimizer, optax.stateless(scale))

    def init(params: Any) -> Any:
        state = chained.init(params)
        of_curvature = lambda node: type(node) in BY_CURVATURE
        if found := [node for node in jax.tree.leaves(state, is_leaf=of_curvature) if of_curvature(node)]:
            name = BY_CURVATURE[type(found[0])]
            raise ValueError(f"mup scales {name}, which chooses its steps by the curvature; expected {name} alone")
        return state

    return chained._replace(init=init)
