"""The network as data: `MLP`, its static description, and its parameters, a tuple of `Layer(W, b)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import activations, initializers, losses, validate
from jaxmlp.activations import Activation, Softmax
from jaxmlp.initializers import Initializer
from jaxmlp.losses import Loss


class Layer(NamedTuple):
    """One layer's weights `W (n_out, n_in)` and biases `b (n_out,)`. `W[j, k]` joins input k to unit j."""

    W: Float[Array, "o i"]
    b: Float[Array, " o"]


Params = tuple[Layer, ...]

# A product of so few numbers is written out as a sum: XLA then fuses it with what is around it, where the call of a
# matrix product takes longer than the product (networks for XOR, many at once, step in two thirds of the time). So is
# an outer product, the gradient of a batch of one, which is then never written: it goes into the update.
TINY = 64

# What the factors of products may be rounded to: the bits of its exponent and of its fraction.
PRODUCTS = {"bfloat16": (8, 7), "tensorfloat32": (8, 10)}


@dataclass(frozen=True, init=False)
class MLP:
    """A fully connected network: `z^l = W^l a^(l-1) + b^l`, `a^l = f_l(z^l)`, for `l = 1..K`, with `a^0 = x`.

    A hashable description without numbers, static under `jit`. `sizes` are the widths `(n_0, .., n_K)`; `hidden`
    is one activation for all hidden layers or one for each; `output` and `loss` belong to the last. Any
    output goes with any loss whose domain holds its range. With `products="bfloat16"` the factors of the matrix
    products forward, backward and of the gradient are rounded to bfloat16 and summed in the parameters' dtype, as a TPU
    and a GPU do fastest (Micikevicius et al. 2018, "Mixed precision training"); with "tensorfloat32" to the 10 bits of
    a GPU's TF32 (a TPU rounds less). None leaves it to JAX: `jax.default_matmul_precision`, of which the default
    rounds float32 on an accelerator and "highest" does not. Source: notes 000, 001 "Multi-layer
    Neural nets".

        net = MLP((784, 64, 10), hidden="relu", output="softmax", loss="cross_entropy")
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
        sizes = validate.sizes(sizes)
        n_hidden = len(sizes) - 2
        each = tuple(hidden) if isinstance(hidden, Sequence) and not isinstance(hidden, str) else (hidden,) * n_hidden
        if len(each) != n_hidden:
            raise ValueError(f"hidden has {len(each)} activations, the network has {n_hidden} hidden layers")
        set_ = object.__setattr__  # the dataclass is frozen
        set_(self, "sizes", sizes)
        set_(self, "hidden", tuple(validate.named(h, activations.NAMED, Activation, "hidden") for h in each))
        set_(self, "output", validate.named(output, activations.NAMED, Activation, "output"))
        set_(self, "loss", validate.named(loss, losses.NAMED, Loss, "loss"))
        set_(self, "products", products if products is None else validate.one_of(products, tuple(PRODUCTS), "products"))
        self._check_pairs()

    def _check_pairs(self):
        for f, n in zip(self.activations, self.sizes[1:], strict=True):
            z = jax.ShapeDtypeStruct((n,), jnp.float32)
            _check_function(f.f, (z,), (n,), f"activation {f.name!r}: f")
            if not isinstance(f, Softmax):
                _check_function(f.df, (z,), (n,), f"activation {f.name!r}: df")
        k = jax.ShapeDtypeStruct(self.sizes[-1:], jnp.float32)
        _check_function(self.loss.f, (k, k), (), f"loss {self.loss.name!r}: f")
        _check_function(self.loss.df, (k, k), k.shape, f"loss {self.loss.name!r}: df")
        for activation in self.hidden:
            if isinstance(activation, Softmax):
                raise ValueError("hidden is 'softmax', which couples a layer's units; it is for the output only")
        if isinstance(self.output, Softmax) and self.sizes[-1] == 1:
            raise ValueError(
                "output is 'softmax' with a single unit, which is constantly 1; expected 'sigmoid' for two classes, "
                "with loss 'binary_cross_entropy'"
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
        """`A @ B`, its factors rounded to `products` if given, its sums in A's dtype."""
        return rounded_product(A, B, self.products)

    def __repr__(self) -> str:
        widths = "-".join(str(n) for n in self.sizes)
        names = ", ".join(dict.fromkeys(h.name for h in self.hidden)) or "none"
        products = f", products={self.products}" if self.products else ""
        return f"MLP({widths}, hidden={names}, output={self.output.name}, loss={self.loss.name}{products})"


def rounded_product(A: Array, B: Array, products: str | None) -> Array:
    """`A @ B`, its factors rounded to the dtype `products` if given, its sums in A's dtype."""
    if products is None and (max(A.size, B.size) <= TINY or B.shape[0] == 1):
        term = lambda k: jnp.outer(A[:, k], B[k]) if A.ndim == B.ndim == 2 else A[..., k] * B[k]
        return sum(map(term, range(1, B.shape[0])), term(0))
    if products is None:
        return A @ B
    if products == "bfloat16":
        accelerated = lambda A, B: jnp.matmul(A.astype(products), B.astype(products), preferred_element_type=A.dtype)
    else:
        accelerated = lambda A, B: jnp.matmul(A, B, precision=products)
    # XLA's products on a CPU take no such factors; there they are rounded alone, which costs time and saves none.
    rounded = lambda X: jax.lax.reduce_precision(X, *PRODUCTS[products])
    return jax.lax.platform_dependent(A, B, cpu=lambda A, B: rounded(A) @ rounded(B), default=accelerated)


def _check_function(function, arguments, shape: tuple[int, ...], name: str) -> None:
    """That a user's function is written in jax.numpy and gives an array of this shape."""
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
    """Draws the parameters: `W^l` from `N(0, v(n_(l-1), n_l))`, `b^l` likewise (zeros by default).

    `weights` and `biases`: "zeros" | "small_normal" (deviation 0.01) | "lecun" (variance 1/n_in, the notes' Xavier) |
    "xavier" (2/(n_in + n_out)) | "he" (2/n_in) | a jax.nn.initializers function, called with `(n_in, n_out)` and
    transposed (for biases with n_in = 1). `dtype` is JAX's default float unless given. The same key gives the same
    parameters.
    """
    key = validate.key(key)
    dtype = validate.float_dtype(dtype)
    layers = []
    for (n_out, n_in), layer_key in zip(net.shapes, jax.random.split(key, net.depth), strict=True):
        W_key, b_key = jax.random.split(layer_key)
        W = initializers.draw(weights, W_key, n_in, n_out, dtype, "weights")
        b = initializers.draw(biases, b_key, 1, n_out, dtype, "biases")
        layers.append(Layer(W, b[:, 0]))
    return tuple(layers)
