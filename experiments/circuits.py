"""Backpropagation gate by gate, from the notes' circuit to a whole 2-2-1 network.

Row 28 of the notes' systems (note 000, "Explanation of Backprop: Circuit"). Each gate multiplies its local gradient by
the gradient from upstream. Expect `f = (x + y) z` at (-2, 5, -4) to have the gradients (-4, -4, 3). Expect the
gradients of every circuit, and of the network, to equal `jax.grad`'s to 1e-12 in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments.output import Output
from jaxmlp.check import error


@dataclass(frozen=True)
class Settings:
    at: tuple[float, float, float] = (-2.0, 5.0, -4.0)  # x, y and z of the notes' example
    hidden: str = "tanh"  # hidden activation of the 2-2-1 network
    key: int = 0  # key of the network's weights
    quick: bool = False  # nothing here is slow


def f(x, y, z):
    return (x + y) * z


def sigmoid(w0, x0, w1, x1, w2):
    return 1 / (1 + jnp.exp(-(w0 * x0 + w1 * x1 + w2)))


def run(settings: Settings, out: Output) -> dict[str, float]:
    worst, shown = 0.0, {}
    with jax.enable_x64(True):
        for name, title, function, arguments in _functions(settings):
            circuit = jm.circuit(function, *arguments)
            apart = _difference(circuit.gradients, _by_autodiff(function, arguments))
            out.say(f"\n{title}\n\n{circuit}\n\nlargest difference from jax.grad: {apart:.1e}")
            shown[name], worst = circuit, max(worst, apart)
            out.picture(name, circuit.draw())
        net, params, x, y = _problem(settings)
        by_layers = jm.value_and_grad(net, params, x[None], y[None])[1]
        apart = _difference(shown["network"].gradients[0], by_layers)
    out.say(f"\nthe network's gradient by gates and by layers (jm.value_and_grad) differs by {apart:.1e}")
    out.say(f"largest difference of all: {max(worst, apart):.1e}, expected at most 1e-12")
    out.close()
    gradients = dict(zip("xyz", map(float, shown["notes"].gradients), strict=True))
    return {"difference": max(worst, apart), "value": float(shown["notes"].value), **gradients}


def _functions(settings: Settings) -> list[tuple[str, str, Callable[..., Any], tuple[Any, ...]]]:
    net, params, x, y = _problem(settings)

    def loss(params, x):
        return jm.output_loss(net, jm.forward(net, params, x)[1], y)

    return [
        ("notes", "the notes' example: add distributes, multiply swaps", f, settings.at),
        ("sigmoid", "the sigmoid circuit: q4's gradient is a (1 - a)", sigmoid, (2, -1, -3, -2, -3)),
        ("routing", "max routes: z is larger and gets the whole gradient, w gets none",
         lambda x, y, z, w: 2 * (x * y + jnp.maximum(z, w)), (3, -4, 2, -1)),
        ("network", f"{net} with its loss: jaxmlp's own forward pass, gate by gate", loss, (params, x)),
    ]  # fmt: skip


def _problem(settings: Settings):
    net = jm.MLP((2, 2, 1), settings.hidden, "sigmoid", "squared_error")
    params = jm.init(net, jax.random.key(settings.key), weights="lecun", biases="small_normal")
    return net, params, jnp.asarray([1.0, 0.5]), jnp.asarray([1.0])


def _by_autodiff(function, arguments):
    arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), arguments)
    return jax.grad(function, tuple(range(len(arguments))))(*arguments)


def _difference(got, expected) -> float:
    """The largest relative difference between two gradients, array by array."""
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: error(np.asarray(a), np.asarray(b)), got, expected)))
