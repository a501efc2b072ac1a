"""The Hessian's largest eigenvalue in training, and the rate at which descent diverges.

On a quadratic, gradient descent diverges at rates above `2 / lambda_max`. Lanczos on the hand-written Hessian products
gives lambda_max at a trained minimum, and full-batch descent starts a little beside the minimum at rates around that
value. Expect the cost to stop falling at a rate within 5% of `2 / lambda_max`. In full-batch training at a constant
rate, expect the largest eigenvalue to rise to `2 / rate` (Cohen et al. 2021, "edge of stability").
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting, training
from jaxmlp.data import scale_pixels


@dataclass(frozen=True)
class Settings:
    examples: int = 500  # examples of MNIST, the full batch
    hidden: int = 32  # hidden units
    learning_rate: float = 0.2
    epochs: int = 600  # full-batch steps
    measured: int = 25  # number of measurements of the eigenvalues
    eigenvalues: int = 3  # number of eigenvalues in each measurement
    key: int = 0
    quick: bool = False  # 200 examples, 150 steps, 6 measurements


def run(settings: Settings, out: Output) -> dict[str, float]:
    m, epochs, measured = settings.examples, settings.epochs, settings.measured
    if settings.quick:
        m, epochs, measured = 200, 150, 6
    pictures = datasets.load("mnist")
    datasets.check_amount("examples", m, len(pictures.X))
    X = jax.vmap(scale_pixels)(jnp.asarray(pictures.X[:m]))
    Y = jax.nn.one_hot(pictures.Y[:m], 10)
    X = X - X.mean(0, keepdims=True)
    net = jm.MLP((784, settings.hidden, 10), "tanh", "identity", "squared_error")
    steps, values, costs = _train(net, X, Y, settings, epochs, measured)
    rows = [{"step": str(step), "cost": f"{cost:.4f}"} |
            {f"eigenvalue {i}": f"{value:.2f}" for i, value in enumerate(row, start=1)}
            for step, cost, row in zip(steps, costs, values, strict=True)]  # fmt: skip
    out.table(f"{net}, {m} examples, full-batch steps at rate {settings.learning_rate:g} "
              f"(2 / rate = {2 / settings.learning_rate:.1f})", rows)  # fmt: skip
    small, theta, top = _minimum(X, pictures.Y[:m])
    factors = np.linspace(0.8, 1.2, 17)
    growth = _growth(small, theta, factors * 2 / top)
    threshold = float(np.interp(0.0, np.log(growth), factors)) if growth[-1] > 1 > growth[0] else float("nan")
    out.table("descent from beside a minimum: the excess cost after 200 steps over the one before", [
        {"rate x eigenvalue / 2": f"{f:.3f}", "excess": f"{g:.3g}", "": "diverges" if g > 1 else "falls"}
        for f, g in zip(factors, growth, strict=True)
    ])  # fmt: skip
    out.say(f"largest eigenvalue at the minimum {top:.4f}; descent diverges at {threshold:.3f} times 2 / eigenvalue")
    columns = {f"eigenvalue_{i}": column for i, column in enumerate(values.T)}
    out.numbers("eigenvalues", {"step": steps, "cost": costs, **columns})
    out.numbers("divergence", {"rate_over_threshold": factors, "excess_ratio": growth})
    _pictures(out, settings, steps, values, factors, growth)
    out.close()
    return {"threshold": threshold, "top_over_edge": float(values[-1, 0] * settings.learning_rate / 2),
            "rise": float(values[-1, 0] / values[0, 0])}  # fmt: skip


def _train(net, X, Y, settings, epochs, measured):
    """Full-batch descent: the step, the largest eigenvalues and the cost at each measurement."""
    plan = training.Plan(net, optax.sgd(settings.learning_rate), batch_size=len(X), steps=1)
    data = training.Data(X, Y)
    state = training.start(plan, jm.init(net, jax.random.key(settings.key), weights="lecun"), data, jax.random.key(1))
    every = max(1, epochs // measured)
    one = lambda state, _: training.epoch(plan, state, data)
    run = jax.jit(lambda state: jax.lax.scan(one, state, length=every)[0])
    steps, values, costs = [], [], []
    for step in range(0, epochs + 1, every):
        steps.append(step)
        values.append(jm.hessian_eigenvalues(net, state.params, X, Y, settings.eigenvalues, tolerance=1e-3))
        costs.append(float(jm.cost(net, state.params, X, Y)))
        state = run(state)
    return steps, np.asarray(values), costs


def _minimum(X, labels):
    """A problem with its minimum and its largest eigenvalue: logistic regression, odd digits against even ones.

    Its inputs are a few principal components. It is convex, so that descent reaches the minimum.
    """
    with jax.enable_x64(True):
        U = np.linalg.svd(np.asarray(X, np.float64), full_matrices=False)
        Z, Y = jnp.asarray(U[0][:, :8] * np.sqrt(len(X))), jnp.asarray(labels % 2, jnp.float64)
        net = jm.MLP((8, 1), output="sigmoid", loss="binary_cross_entropy")
        theta = jm.init(net, jax.random.key(0))
        step = lambda _, p: jax.tree.map(lambda w, g: w - g, p, jm.value_and_grad(net, p, Z, Y)[1])
        theta = jax.jit(lambda p: jax.lax.fori_loop(0, 5000, step, p))(theta)
        top = float(jm.hessian_eigenvalues(net, theta, Z, Y)[0])
    return (net, Z, Y), theta, top


def _growth(problem, theta, rates: np.ndarray) -> np.ndarray:
    """The cost's excess over the minimum after 200 steps at each rate, over the excess before."""
    net, Z, Y = problem

    @jax.jit
    def descend(params, rate):
        step = lambda p, _: (jax.tree.map(lambda w, g: w - rate * g, p, jm.value_and_grad(net, p, Z, Y)[1]), None)
        return jm.cost(net, jax.lax.scan(step, params, length=200)[0], Z, Y)

    with jax.enable_x64(True):
        lowest = jm.cost(net, theta, Z, Y)
        keys = jax.random.split(jax.random.key(1), 2)
        moved = tuple(jm.Layer(layer.W + 1e-4 * jax.random.normal(k, layer.W.shape), layer.b)
                      for layer, k in zip(theta, keys, strict=False))  # fmt: skip
        before = jm.cost(net, moved, Z, Y) - lowest
        excess = [float((descend(moved, rate) - lowest) / before) for rate in rates]
        return np.maximum(excess, 1e-7)  # a smaller excess is rounding


def _pictures(out: Output, settings: Settings, steps, values, factors, growth) -> None:
    figure, (left, right) = plotting.figure(1, 2, size=(5.4, 3.8))
    for i, color in zip(range(values.shape[1]), plotting.PALETTE, strict=False):
        left.plot(steps, values[:, i], ".-", color=color, label=f"eigenvalue {i + 1}")
    left.axhline(2 / settings.learning_rate, color="gray", linestyle="--", label="2 / rate")
    left.set(xlabel="full-batch step", ylabel="eigenvalue of the Hessian", ylim=(0, None))
    right.semilogy(factors, growth, ".-", color=plotting.BLUE)
    right.axvline(1, color="gray", linestyle="--", label="rate = 2 / largest eigenvalue")
    right.axhline(1, color="gray", linestyle=":")
    right.set(xlabel="rate x largest eigenvalue / 2", ylabel="excess cost after 200 steps / before")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    out.picture("eigenvalues", figure)
