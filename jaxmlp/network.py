"""The network as data: `MLP`, its static description, and its parameters, a tuple of `Layer(W, b)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import activations, initializers, losses, validate
from jaxmlp.activations import Activation, Softmax
from jaxmlp.doors import check_network
from jaxmlp.initializers import Initializer
from jaxmlp.losses import Loss
from jaxmlp.pickling import Description
from jaxmlp.products import PRODUCTS, rounded_product


class Layer(NamedTuple):
    """One layer's weights `W (n_out, n_in)` and biases `b (n_out,)`. `W[o, i]` joins input i to unit o."""

    W: Float[Array, "o i"]
    b: Float[Array, " o"]


Params = tuple[Layer, ...]


@jax.tree_util.register_static
@dataclass(frozen=True, init=False)
class MLP(Description):
    """A fully connected network: `z^l = W^l a^(l-1) + b^l`, `a^l = f_l(z^l)` for `l = 1..K`, with `a^0 = x`.

    The description holds no parameters; it is hashable, static under `jit`, and a pytree without leaves. A copy or an
    unpickled one is equal to it, and compiles nothing again.

    Args:
        sizes: the widths `(n_0, .., n_K)`.
        hidden: one activation for all hidden layers, or one for each; a name or an `Activation`.
        output: the last layer's activation. Its range must lie inside the loss's domain.
        loss: "squared_error", "binary_cross_entropy", "cross_entropy" or a `Loss`.
        products: the precision of the matrix products, forward, backward and of the gradient. "bfloat16" rounds their
            factors and sums in the parameters' dtype; GPUs and TPUs compute such products fastest. "tensorfloat32"
            rounds the factors to the 10 bits of a GPU's TF32; a TPU rounds them less. With None,
            `jax.default_matmul_precision` decides: its default rounds float32 on GPU and TPU, "highest" does not.
    Raises:
        ValueError: where a width, a name or a user's function does not fit, or the output does not fit the loss.
    Example:
        >>> jm.MLP((784, 64, 10), hidden="relu", output="softmax", loss="cross_entropy")
        MLP(784-64-10, hidden=relu, output=softmax, loss=cross_entropy)

    Source: notes 000; 001, "Multi-layer Neural nets"; for `products` Micikevicius et al. 2018, "Mixed precision
    training".
    """

    sizes: tuple[int, ...]
    hidden: tuple[Activation, ...]
    output: Activation
    loss: Loss
    products: str | None

    def __init__(
        self,
        sizes: Sequence[int],
        hidden: str | Activation | Sequence[str | Activation] = "relu",
        output: str | Activation = "identity",
        loss: str | Loss = "squared_error",
        products: Literal["bfloat16", "tensorfloat32"] | None = None,
    ):
        sizes = _check_sizes(sizes)
        n_hidden = len(sizes) - 2
        each = tuple(hidden) if isinstance(hidden, Sequence) and not isinstance(hidden, str) else (hidden,) * n_hidden
        if len(each) != n_hidden:
            raise ValueError(f"hidden has {len(each)} activations, expected {n_hidden}, one for each hidden layer")
        set_ = object.__setattr__  # the dataclass is frozen
        set_(self, "sizes", sizes)
        set_(self, "hidden", tuple(validate.look_up(f, activations.NAMED, Activation, "hidden") for f in each))
        set_(self, "output", validate.look_up(output, activations.NAMED, Activation, "output"))
        set_(self, "loss", validate.look_up(loss, losses.NAMED, Loss, "loss"))
        set_(self, "products", products if products is None else validate.one_of(products, tuple(PRODUCTS), "products"))
        self._check_functions()
        self._check_output()

    def _check_functions(self):
        for f, n in zip(self.activations, self.sizes[1:], strict=True):
            z = jax.ShapeDtypeStruct((n,), jnp.float32)
            _check_function(f.f, (z,), (n,), f"activation {f.name!r}: f")
            if not isinstance(f, Softmax):
                _check_function(f.df, (z,), (n,), f"activation {f.name!r}: df")
        k = jax.ShapeDtypeStruct(self.sizes[-1:], jnp.float32)
        _check_function(self.loss.f, (k, k), (), f"loss {self.loss.name!r}: f")
        _check_function(self.loss.df, (k, k), k.shape, f"loss {self.loss.name!r}: df")

    def _check_output(self):
        if any(isinstance(f, Softmax) for f in self.hidden):
            raise ValueError("hidden is 'softmax', which couples a layer's units; it is for the output only")
        if isinstance(self.output, Softmax) and self.sizes[-1] == 1:
            raise ValueError(
                "output is 'softmax' with a single unit, which is constantly 1; expected 'sigmoid' for two classes, "
                "with loss 'binary_cross_entropy'"
            )
        if self.output == activations.step and self.loss.of_log_odds:
            raise ValueError(
                f"output 'step' gives 0 and 1 alone, where loss {self.loss.name!r} is infinite; expected 'sigmoid' or "
                "another output with values between"
            )
        (low, high), (least, most) = self.output.range, self.loss.domain
        if low < least or high > most:
            raise ValueError(
                f"output {self.output.name!r} gives values in [{low:g}, {high:g}], but loss {self.loss.name!r} "
                f"takes values in [{least:g}, {most:g}]; choose an output whose range lies inside"
            )

    @property
    def activations(self) -> tuple[Activation, ...]:
        """`f_1 .. f_K`."""
        return (*self.hidden, self.output)

    @property
    def depth(self) -> int:
        """`K`, the number of layers with weights."""
        return len(self.sizes) - 1

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shape `(n_l, n_(l-1))` of each `W^l`."""
        return tuple((n_out, n_in) for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True))

    def product(self, A: Float[Array, "*n p"], B: Float[Array, "p *q"]) -> Float[Array, "..."]:
        """`A @ B`, its factors rounded to `products` unless None, its sums in A's dtype."""
        return rounded_product(A, B, self.products)

    def __repr__(self) -> str:
        widths = "-".join(str(n) for n in self.sizes)
        names = ", ".join(dict.fromkeys(f.name for f in self.hidden)) or "none"
        products = f", products={self.products}" if self.products else ""
        return f"MLP({widths}, hidden={names}, output={self.output.name}, loss={self.loss.name}{products})"


def _check_sizes(given: Sequence[int]) -> tuple[int, ...]:
    """The widths of a network: two or more, each at least 1."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"sizes is {given!r}, expected a sequence of widths such as (784, 64, 10)")
    if len(given) < 2:
        raise ValueError(f"sizes is {tuple(given)}, expected at least the widths of the inputs and of the outputs")
    return tuple(validate.whole(n, f"sizes[{index}]") for index, n in enumerate(given))


def _check_function(function, arguments, shape: tuple[int, ...], name: str) -> None:
    """Refuses a function that is not written in jax.numpy or gives an array of another shape."""
    given = ", ".join(str(a.shape) for a in arguments)
    try:
        made = jax.eval_shape(function, *arguments)
    except (TypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(f"{name} fails on {given}, expected a function in jax.numpy: {error}") from None
    if getattr(made, "shape", None) != shape:
        raise ValueError(f"{name} turns {given} into {getattr(made, 'shape', made)}, expected {shape}")


def init(
    net: MLP,
    key: PRNGKeyArray,
    weights: str | Initializer = "he",
    biases: str | Initializer = "zeros",
    dtype: jnp.dtype | type | None = None,
) -> Params:
    """Draws the parameters: `W^l` and `b^l` normal with mean 0. The same key gives the same parameters.

    Args:
        weights: the variance of the weights: "zeros", "small_normal" (`0.01^2`), "lecun" (`1/n_in`, the notes' Xavier),
            "xavier" (`2/(n_in + n_out)`) or "he" (`2/n_in`); or a function of `jax.nn.initializers`, which is called
            with the shape `(n_in, n_out)`, and whose result is transposed; or what `mup_weights` gives.
        biases: the same for the biases, with `n_in = 1`.
        dtype: a floating-point dtype; JAX's default float unless given.
    Returns:
        A `Layer(W, b)` for each layer: `W (n_l, n_(l-1))` and `b (n_l,)`.
    Raises:
        ValueError: where an argument does not fit; an unknown name is answered with the nearest known one.
    Example:
        >>> [layer.W.shape for layer in jm.init(net, key, weights="lecun")]
        [(64, 784), (10, 64)]
    """
    check_network(net)
    key = validate.key(key)
    dtype = validate.float_dtype(dtype)
    each = enumerate(zip(initializers.for_each_layer(weights, net.sizes, "weights"), net.shapes, strict=True))
    keys = jax.random.split(key, net.depth)
    # Named draws compile once for all layers of a shape; a function may not be traceable.
    draw = _draw_named if isinstance(weights, str) and isinstance(biases, str) else _draw
    return tuple(draw(jax.random.split(keys[l]), how, biases, shape, dtype) for l, (how, shape) in each)


def _draw(keys: PRNGKeyArray, weights, biases, shape: tuple[int, int], dtype: jnp.dtype) -> Layer:
    n_out, n_in = shape
    W = initializers.draw(weights, keys[0], n_in, n_out, dtype, "weights")
    return Layer(W, initializers.draw(biases, keys[1], 1, n_out, dtype, "biases")[:, 0])


_draw_named = jax.jit(_draw, static_argnames=("weights", "biases", "shape", "dtype"))
