"""What each readout costs beside the plain mean gradient, `vmap(grad)`, BackPACK and Opacus."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from jaxmlp.network import Params

MAX_NORM = 1.0
FORMED = {"norms", "clipped gradient", "second moment"}  # compared with vmap(grad) too


def quantities(net: jm.MLP) -> dict[str, Callable]:
    """Functions of `(params, X, Y)`."""
    of_trace = {
        "mean gradient": jm.mean_gradient,
        "norms": jm.per_example_norms,
        "clipped gradient": lambda trace: jm.clipped_gradient(trace, MAX_NORM),
        "second moment": jm.second_moment,
        "variance": jm.variance,
        "Gram matrix": jm.gradient_gram,
        "Kronecker factors": jm.kronecker_factors,
    }
    return {name: (lambda p, X, Y, read=read: read(jm.backprop(net, p, X, Y))) for name, read in of_trace.items()}


def with_gradient(net: jm.MLP) -> dict[str, Callable]:
    """The same quantities beside the mean gradient, as BackPACK and Opacus compute them."""

    def both(readout):
        def run(params, X, Y):
            trace = jm.backprop(net, params, X, Y)
            return jm.mean_gradient(trace), readout(trace)

        return run

    def kronecker(params, X, Y):
        trace = jm.backprop(net, params, X, Y)
        labels = jm.sample_labels(net, trace.output, jax.random.key(0))
        return jm.mean_gradient(trace), jm.kronecker_factors(jm.backprop(net, params, X, labels))

    return {
        "norms": both(jm.per_example_norms),
        "second moment": both(jm.second_moment),
        "Kronecker factors": kronecker,
        "Gauss-Newton diagonal": lambda p, X, Y: (jm.value_and_grad(net, p, X, Y)[1], jm.ggn_diagonal(net, p, X, Y)),
        "clipped gradient": lambda p, X, Y: jm.clipped_gradient(jm.backprop(net, p, X, Y), MAX_NORM),
    }


def formed(net: jm.MLP) -> dict[str, Callable]:
    """The same by `vmap(grad)`, which forms every example's gradient."""

    def gradients(params, X, Y):
        one = lambda x, y: jax.grad(lambda p: jm.cost(net, p, x[None], y[None]))(params)
        return jax.vmap(one)(X, Y)

    def norms(grads):
        return jnp.sqrt(sum(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)))

    def clipped(grads):
        factor = MAX_NORM / jnp.maximum(norms(grads), MAX_NORM)
        return jax.tree.map(lambda g: jnp.tensordot(factor, g, 1) / g.shape[0], grads)

    reads = {"norms": norms, "clipped gradient": clipped,
             "second moment": lambda grads: jax.tree.map(lambda g: jnp.mean(g**2, axis=0), grads)}  # fmt: skip
    return {name: (lambda p, X, Y, read=read: read(gradients(p, X, Y))) for name, read in reads.items()}


def compiled(function: Callable, *arguments) -> tuple[Callable[[], None], int]:
    """A call that waits for its result, and the bytes it needs beside its arguments, by XLA's own count."""
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else 0
    return lambda: jax.block_until_ready(program(*arguments)), needed


def alternate(calls: dict[str, Callable[[], None]], rounds: int, repeats: int) -> dict[str, np.ndarray]:
    """Each call's seconds, round by round, the mean of `repeats`; every other round backwards."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            for _ in range(repeats):
                calls[name]()
            times[name].append((time.perf_counter() - began) / repeats)
    return {name: np.asarray(seconds[1:]) for name, seconds in times.items()}


def ratios(net: jm.MLP, params: Params, X, Y, rounds: int, repeats: int) -> tuple[list[dict[str, str]], dict]:
    """A row for each quantity: its time and memory over the mean gradient's."""
    made = {name: compiled(f, params, X, Y) for name, f in quantities(net).items()}
    times = alternate({name: call for name, (call, _) in made.items()}, rounds, repeats)
    rows = []
    for name, seconds in times.items():
        ratio = seconds / times["mean gradient"]
        rows.append({"quantity": name, "ms": f"{1e3 * np.median(seconds):.2f}", "ratio": f"{np.median(ratio):.2f}",
                     "quartiles": "{:.2f} to {:.2f}".format(*np.percentile(ratio, [25, 75])),
                     "memory": f"{made[name][1] / made['mean gradient'][1]:.2f}"})  # fmt: skip
    return rows, {name: float(np.median(seconds / times["mean gradient"])) for name, seconds in times.items()}


def against_formed(net: jm.MLP, params: Params, X, Y) -> list[dict[str, str]]:
    """Ours against `vmap(grad)`: three rounds, for the latter takes long."""
    rows = []
    for name, slow in formed(net).items():
        calls = {"ours": compiled(quantities(net)[name], params, X, Y)[0], "formed": compiled(slow, params, X, Y)[0]}
        times = alternate(calls, 3, 1)
        factor = np.median(times["formed"] / times["ours"])
        rows.append({"quantity": name, "ours (ms)": f"{1e3 * np.median(times['ours']):.1f}",
                     "vmap(grad) (ms)": f"{1e3 * np.median(times['formed']):.0f}",
                     "times faster": f"{factor:.0f}"})  # fmt: skip
    return rows


def against_torch(net: jm.MLP, params: Params, X, Y, rounds: int) -> list[dict[str, str]]:
    """Ours with the mean gradient against BackPACK and Opacus; a row that says so where they are not installed."""
    try:
        from experiments import _torch_peers as peers
    except ModuleNotFoundError as error:
        return [{"quantity": "all", "peer": f"{error.name} is not installed: the extra benchmark brings it"}]
    ours = with_gradient(net)
    arrays = params, np.array(X), np.array(Y)
    contests: dict[tuple[str, str], Callable] = {}
    for name in ("norms", "second moment", "Kronecker factors", "Gauss-Newton diagonal"):
        contests[name, "BackPACK"] = lambda name=name: peers.backpack(name, *arrays)
    contests["clipped gradient", "Opacus, per example"] = lambda: peers.opacus_per_example(*arrays, MAX_NORM)
    contests["clipped gradient", "Opacus, ghost"] = lambda: peers.opacus_ghost(*arrays, MAX_NORM)
    rows = []
    for (name, peer), make in contests.items():
        try:
            call = make()
        except ModuleNotFoundError as error:
            rows.append({"quantity": name, "peer": f"{peer}: {error.name} is not installed"})
            continue
        times = alternate({"ours": compiled(ours[name], params, X, Y)[0], "peer": call}, rounds, 1)
        factor = np.median(times["peer"] / times["ours"])
        rows.append({"quantity": name, "peer": peer, "ours (ms)": f"{1e3 * np.median(times['ours']):.1f}",
                     "peer (ms)": f"{1e3 * np.median(times['peer']):.1f}",
                     "times faster": f"{factor:.1f}"})  # fmt: skip
    return rows
