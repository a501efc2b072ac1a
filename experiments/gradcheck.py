"""Gradient checking: three routes to each gradient, the look of each mistake, and the best step.

Row 16 of the notes' systems (note 002, "Numerical Approximation of Gradients"). Expect every right gradient to pass:
to 1e-12 against autodiff in float64, 1e-5 in float32, and to 1e-7 against central differences. Expect the check to
catch and name every wrong gradient. Expect the error of central differences to be least near a step of 1e-5; with the
notes' step of 1e-7 they lose half their digits.

Random networks are checked in float64, with every output and loss that `MLP` takes, 0 to 6 hidden layers of any
activations, widths from 1, and in half of them weights so large that z is extreme. Their gradients are compared with
complex steps in extended precision. Expect every error at most 1e-10; the exit status is 1 if one is larger or not
finite. `--networks 10000` takes about 10 minutes of one core and 4 GB.
"""

import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments._random_networks import (
    Problem,
    bound_rounding,
    differentiate,
    draw,
    list_pairs,
    measure_sensitivity,
)
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.check import central_difference, check_gradients


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...] = (8, 6, 6, 4)  # widths of the checked networks
    examples: int = 10
    steps: int = 31  # number of steps of central differences in the picture, from 1e-12 to 1e-1
    networks: int = 100  # random networks
    widest: int = 6  # the largest width of a random network
    key: int = 0
    quick: bool = False  # one activation, and at most 16 random networks of widths 1 and 2


TOLERANCE = 1e-10  # of random networks against complex steps; saturated ones share fewer digits with them
ACTIVATIONS = ("identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "gelu", "silu")


def run(settings: Settings, out: Output) -> dict[str, float]:
    if settings.networks < 1 or settings.widest < 1:
        raise ValueError(f"networks is {settings.networks} and widest {settings.widest}, expected at least 1 of each")
    with jax.enable_x64(True):
        out.say(f"theta^3 at 1 with eps = 0.01: {float(central_difference(lambda t: t**3, jnp.asarray(1.0), 0.01)):.7g}"
                " (the gradient is 3, the error 1e-4)")  # fmt: skip
        rows = list(_right(settings, ACTIVATIONS[2:3] if settings.quick else ACTIVATIONS))
        out.table("right gradients: the largest error of an array", [row for row, _ in rows])
        mistakes = _wrong(settings)
        out.table("wrong gradients, and the report's words for them", mistakes)
        steps, errors = _by_step(settings)
        networks, widest = (min(settings.networks, 16), 2) if settings.quick else (settings.networks, settings.widest)
        found = check_random_networks(networks, settings.key, widest)
    _report_random_networks(found, out)
    best = {name: steps[int(np.argmin(error))] for name, error in errors.items()}
    out.table("central differences against the gradient by hand, by the notes' formula", [
        {"function": name, "best step": f"{best[name]:.0e}", "error there": f"{error.min():.1e}",
         "at the notes' 1e-7": f"{error[int(np.argmin(abs(np.log(steps / 1e-7))))]:.1e}"}
        for name, error in errors.items()
    ])  # fmt: skip
    out.numbers("error_by_step", {"step": steps, **errors})
    figure, ax = plotting.figure(size=(6, 4))
    for (name, error), color in zip(errors.items(), plotting.PALETTE, strict=False):
        ax.loglog(steps, np.maximum(error, 1e-17), color=color, marker=".", label=name)
    ax.axvline(1e-7, color="gray", linestyle=":", label="the notes' step, 1e-7")
    ax.axvline(1e-5, color="gray", linestyle="--", label="jaxmlp's step, 1e-5")
    ax.set(xlabel="step $\\epsilon$", ylabel="error, $\\|a - b\\|\\; / \\;(\\|a\\| + \\|b\\|)$")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    out.picture("error_by_step", figure)
    out.close()
    if wrong := [each for each in found if not each.error <= TOLERANCE]:
        sys.exit(
            f"{len(wrong)} of {len(found)} random networks have a wrong gradient, the first {wrong[0].problem.net}"
        )
    return {
        "right_passed": float(np.mean([passed for _, passed in rows])),
        "wrong_caught": float(np.mean([row["caught"] == "yes" for row in mistakes])),
        "best_step": float(np.median(list(best.values()))),
        "worst_random": max(each.error for each in found),
    }


class Checked(NamedTuple):
    """A random network and the largest error of its cost and its gradient's arrays."""

    problem: Problem
    error: float


def check_random_networks(networks: int, key: int, widest: int = 6) -> list[Checked]:
    """Draws networks, each pair of output and loss in turn, and compares their gradients with complex steps.

    Most run operation by operation, which compiles no network as a whole; every hundredth is compiled.
    """
    rng, pairs, found = np.random.default_rng(key), list_pairs(), []
    for number in range(networks):
        problem = draw(rng, pairs[number % len(pairs)], widest)
        params, masks = jax.tree.map(jnp.asarray, (problem.params, problem.masks))
        with jax.disable_jit(number % 100 != 0):
            J, grads = jm.value_and_grad(
                problem.net, params, problem.X, problem.Y, weights=problem.weights, masks=masks
            )
        expected_J, expected = differentiate(problem)
        bounds = bound_rounding(problem)
        got = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
        worst = max(map(_error, got, expected, bounds))
        if worst > TOLERANCE:  # is it the gradient, or do the last bits of the weights decide?
            bounds = [b + s for b, s in zip(bounds, measure_sensitivity(problem, expected), strict=True)]
            worst = max(map(_error, got, expected, bounds))
        found.append(Checked(problem, max(worst, _error(np.asarray(J), np.asarray(expected_J), max(bounds)))))
        if sys.stderr.isatty() and number % 100 == 99:
            print(f"\r{number + 1} of {networks} networks", end="", file=sys.stderr, flush=True)
    return found


def exit_if_wrong(found: list[Checked]) -> None:
    """Ends the process with status 1 if a gradient is wrong or not finite."""
    if wrong := [each for each in found if not each.error <= TOLERANCE]:
        sys.exit(
            f"{len(wrong)} of {len(found)} random networks have a wrong gradient, the first {wrong[0].problem.net}"
        )


def _error(got: np.ndarray, expected: np.ndarray, rounding: float) -> float:
    """`||a - b|| / max(||a||, ||b||)`, at most what rounding explains; infinite where a number is not finite."""
    apart, size = np.linalg.norm(got - expected), max(np.linalg.norm(got), np.linalg.norm(expected))
    if not np.isfinite(apart):
        return np.inf
    return float(apart and apart / max(size, rounding / TOLERANCE))


def _report_random_networks(found: list[Checked], out: Output) -> None:
    by_pair: dict[tuple[str, str], list[Checked]] = {}
    for each in found:
        by_pair.setdefault((each.problem.net.output.name, each.problem.net.loss.name), []).append(each)
    out.table("random networks: the largest error of a cost or an array of the gradient", [
        {"output": output, "loss": loss, "networks": str(len(each)), "worst": f"{max(c.error for c in each):.1e}",
         "wrong": str(sum(not c.error <= TOLERANCE for c in each))}
        for (output, loss), each in sorted(by_pair.items())
    ])  # fmt: skip
    shapes = len({each.problem.net for each in found})
    wrong, worst = sum(not each.error <= TOLERANCE for each in found), max(each.error for each in found)
    out.say(f"{len(found)} networks of {shapes} architectures: {wrong} wrong, worst error {worst:.1e} "
            f"(allowed {TOLERANCE:.0e})")  # fmt: skip


def _problem(settings: Settings, activation: str, dtype):
    net = jm.MLP(settings.sizes, activation, "softmax", "cross_entropy")
    keys = jax.random.split(jax.random.key(settings.key), 3)
    params = jm.init(net, keys[0], weights="lecun", biases="small_normal", dtype=dtype)
    X = jax.random.normal(keys[1], (settings.examples, settings.sizes[0]), dtype)
    return net, params, X, jax.random.randint(keys[2], (settings.examples,), 0, settings.sizes[-1])


def _right(settings: Settings, activations):
    for activation in activations:
        row, passed = {"activation": activation}, True
        for dtype in ("float64", "float32"):
            report = check_gradients(*_problem(settings, activation, dtype), entries=30)
            passed &= report.passed
            worst = {route: max(r.error for r in report.rows if r.route == route) for route in
                     ("autodiff", "differences")}  # fmt: skip
            row[f"autodiff, {dtype}"] = f"{worst['autodiff']:.1e}"
            if dtype == "float64":
                row["differences, float64"] = f"{worst['differences']:.1e}"
                row["on a kink"] = str(sum(len(r.straddling) for r in report.rows))
        yield row | {"passed": "yes" if passed else "NO"}, passed


def _wrong(settings: Settings) -> list[dict[str, str]]:
    """A row for each classic mistake, made on purpose."""
    net, params, X, Y = _problem(settings, "tanh", "float64")

    def scale(factor):
        return lambda *problem: jax.tree.map(lambda g: factor * g, jm.value_and_grad(*problem)[1])

    def transpose(*problem):
        grads = jm.value_and_grad(*problem)[1]
        return (grads[0], grads[1]._replace(W=grads[1].W.T), *grads[2:])

    def leave_out_derivative(net, *rest):
        hidden = (replace(net.hidden[0], df=jnp.ones_like), *net.hidden[1:])
        return jm.value_and_grad(jm.MLP(net.sizes, hidden, net.output, net.loss), *rest)[1]

    def update_too_early(net, params, X, Y):
        grads = jm.value_and_grad(net, params, X, Y)[1]
        rate = lambda p, g: p - 0.1 * g
        stale = jm.Rule(
            "stale",
            carry=lambda down: down.state.T @ down.delta,
            init=lambda net, key: tuple(jnp.zeros(s) for s in net.shapes[1:]),
        )
        updated = tuple(rate(p.W, g.W) for p, g in zip(params[1:], grads[1:], strict=True))
        trace = jm.backprop(net, params, X, Y, rule=stale, rule_state=updated)
        return jm.mean_gradient(trace)

    mistakes = {
        "no 1/m": scale(settings.examples),
        "twice the gradient": scale(2.0),
        "the wrong sign": scale(-1.0),
        "W^2 transposed": transpose,
        "f' left out at layer 1": leave_out_derivative,
        "updated before it is used": update_too_early,
    }
    rows = []
    for name, backward in mistakes.items():
        report = check_gradients(net, params, X, Y, backward=backward, entries=30)
        words = "; ".join(report.looks_like)
        rows.append({"mistake": name, "caught": "NO" if report.passed else "yes",
                     "looks like": words if len(words) < 90 else words[:87] + "..."})  # fmt: skip
    return rows


def _by_step(settings: Settings) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps, and for each the error of central differences by the notes' formula, of W^1 and of theta^3."""
    steps = np.logspace(-12, -1, settings.steps)
    net, params, X, Y = _problem(settings, "tanh", "float64")
    by_hand = np.asarray(jm.value_and_grad(net, params, X, Y)[1][0].W).ravel()

    @jax.jit
    def gradient(step):
        def entry(index):
            W = params[0].W
            move = lambda t: (params[0]._replace(W=W.ravel().at[index].add(t).reshape(W.shape)), *params[1:])
            return central_difference(lambda t: jm.cost(net, move(t), X, Y), jnp.zeros(()), step)

        return jax.vmap(entry)(jnp.arange(by_hand.size))

    notes = lambda a, b: np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b))
    cube = [notes(float(central_difference(lambda t: t**3, jnp.asarray(1.0), step)), 3.0) for step in steps]
    return steps, {
        "W^1 of a network": np.asarray([notes(np.asarray(gradient(step)), by_hand) for step in steps]),
        "theta^3 at 1": np.asarray(cube),
    }
