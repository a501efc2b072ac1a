"""Full batch, mini-batch and single examples: the cost by epoch and by second, and the noise of a step.

Row 22 of the notes' systems (note 002, "Mini Batch Gradient Descent", "Choosing your mini-batch size"). 784-64-10
learns digits by plain SGD. Each size has the best of three rates: a noisier gradient needs smaller steps, as the notes
say. Expect smaller batches to reach a low cost in fewer epochs. In seconds expect a size in between to be the first:
steps of size 1 cannot use vector products, and the full batch makes few steps. The noise of a step,
`E ||g_b - g||^2 / ||g||^2`, falls as 1 / b, times `(m - b) / (m - 1)` for drawing without replacement. To 1e-12 in
float64, an epoch of the full batch is one step of the mean gradient, and an epoch of size 1 is the per-example rule.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting, training
from jaxmlp.check import error
from jaxmlp.data import scale_pixels
from jaxmlp.training.sampling import draw

RATES = {1: 0.02, 10: 0.2, 64: 0.6, 512: 1.0}  # each is the best of three: it, about a half of it, about a fifth
FULL_RATE = 0.5  # the best of 0.2, 0.5 and 1


@dataclass(frozen=True)
class Settings:
    examples: int = 6000  # examples of MNIST
    sizes: tuple[int, ...] = (1, 10, 64, 512)  # batch sizes beside the full batch
    epochs: int = 20  # epochs of each size
    full_batch_epochs: int = 400  # epochs of the full batch, one step each
    reach: float = 0.2  # the table has the epochs and seconds to this cost
    shown: int = 150  # steps whose batch's cost is drawn
    draws: int = 200  # batches of each size that measure the noise
    key: int = 0
    quick: bool = False  # 2,000 examples, 3 epochs (60 of the full batch), 40 draws, 20 steps shown


def run(settings: Settings, out: Output) -> dict[str, float]:
    m, epochs, full, count = settings.examples, settings.epochs, settings.full_batch_epochs, settings.draws
    if m < 513 or min(epochs, full, settings.shown, count) < 1:
        raise ValueError(f"examples, epochs, full_batch_epochs, shown and draws are {m}, {epochs}, {full}, "
                         f"{settings.shown}, {count}; expected at least 513 examples and 1 of each")  # fmt: skip
    if not settings.sizes or not set(settings.sizes) <= set(RATES):
        raise ValueError(f"sizes is {settings.sizes}, expected some of {', '.join(map(str, RATES))}")
    rates = {size: RATES[size] for size in settings.sizes}
    if settings.quick:
        m, epochs, full, count = 2000, 3, 60, 40
        settings = replace(settings, shown=20)
    pictures = datasets.load("mnist")
    datasets.check_amount("examples", m, len(pictures.X))
    X, Y = jnp.asarray(pictures.X[:m]), jnp.asarray(pictures.Y[:m])
    net = jm.MLP((784, 64, 10), "relu", "softmax", "cross_entropy")
    params = jm.init(net, jax.random.key(settings.key))
    checks = _checks(net, X[:40], Y[:40], settings.key)
    noise = _noise(net, params, X, Y, list(rates), count, settings.key)
    histories, paths, rows = {}, {}, []
    for size, rate in {**rates, m: FULL_RATE}.items():
        histories[size], accuracy = _fit(net, params, X, Y, size, rate, full if size == m else epochs, pictures)
        rows.append(_row(settings, m, size, rate, histories[size], accuracy, noise.get(size, (0.0, 0.0))))
        paths[size] = _path(net, params, X, Y, size, rate, settings)
        out.numbers(f"history_{size}", histories[size])
    out.table(f"{net}, {m:,} digits; seconds without compilation", rows)
    out.say(f"an epoch of the full batch differs from one step of the mean gradient by {checks['full']:.1e}")
    out.say(f"an epoch of size 1 differs from W <- W - eta delta a^T, example by example, by {checks['one']:.1e}")
    out.picture("batch_size", _picture(m, histories, paths, noise))
    out.close()
    ratios = [measured / predicted for measured, predicted in noise.values()]
    costs = {size: history["cost"] for size, history in histories.items()}
    return {**checks, "noise, least": min(ratios), "noise, most": max(ratios),
            "mini_batch": float(min(costs[size][-1] for size in rates)),
            "full_batch": float(costs[m][min(epochs, full) - 1])}  # fmt: skip


def _checks(net: jm.MLP, X, Y, key: int) -> dict[str, float]:
    """An epoch of the full batch and one of size 1 against the notes' rules for them, in float64."""
    params = jm.init(net, jax.random.key(key))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda w: jnp.asarray(np.asarray(w, np.float64)), params)
        data = training.Data(jnp.asarray(np.asarray(X).reshape(len(X), -1) / 255), jnp.asarray(Y))
        rate, apart = 0.1, {}
        epoch = jax.jit(training.epoch, static_argnums=0)
        for name, size in (("full", len(X)), ("one", 1)):
            plan = training.Plan(net, optax.sgd(rate), size, len(X) // size)
            state = training.start(plan, params, data, jax.random.key(key))
            ours = epoch(plan, state, data, key=jax.random.key(key))[0].params
            if name == "full":
                each = jax.jit(lambda p, X, Y: jm.per_example_gradients(jm.backprop(net, p, X, Y)))
                expected = jax.tree.map(lambda w, g: w - rate * np.mean(g, 0), params, each(params, *data[:2]))
            else:
                order = draw(plan, data, jax.random.key(key), random=False).index
                assert order is not None
                expected = _by_the_rule(net, params, data, np.ravel(order), rate)
            pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
            apart[name] = max(error(np.asarray(a), np.asarray(b)) for a, b in pairs)
        return apart


def _by_the_rule(net: jm.MLP, params, data: training.Data, order, rate: float):
    """The weights after `W <- W - eta delta a^T` and `b <- b - eta delta`, example by example."""

    @jax.jit
    def step(params, x, y):
        _, tape = jm.forward(net, params, x)
        deltas = jm.backward(net, params, tape, jm.output_delta(net, tape, y))
        return tuple(jm.Layer(layer.W - rate * jnp.outer(delta, a), layer.b - rate * delta)
                     for layer, delta, a in zip(params, deltas, tape.inputs, strict=True))  # fmt: skip

    for i in order:
        params = step(params, data.X[i], data.Y[i])
    return params


def _noise(net: jm.MLP, params, X, Y, sizes, count: int, key: int) -> dict[int, tuple[float, float]]:
    """For each size `E ||g_b - g||^2 / ||g||^2` over `count` batches, and its prediction by one example's variance."""
    m = len(X)
    flat = lambda grads: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    @jax.jit
    def moments(params, X, Y):
        trace = jm.backprop(net, params, X, Y, preprocess=scale_pixels)
        return flat(jm.mean_gradient(trace)), flat(jm.variance(trace)).sum()

    g, spread = moments(params, X, Y)

    @partial(jax.jit, static_argnames="size")
    def measure(keys, size):
        def one(key):
            batch = jax.random.permutation(key, m)[:size]
            g_b = flat(jm.value_and_grad(net, params, X[batch], Y[batch], preprocess=scale_pixels)[1])
            return jnp.sum((g_b - g) ** 2)

        return jax.lax.map(one, keys).mean()

    keys = jax.random.split(jax.random.key(key), count)
    at = lambda size: (measure(keys, size), spread / size * (m - size) / (m - 1))
    return {size: (float(measured / (g @ g)), float(predicted / (g @ g)))
            for size in sizes for measured, predicted in [at(size)]}  # fmt: skip


def _fit(net: jm.MLP, params, X, Y, size: int, rate: float, epochs: int, pictures):
    """The history, its seconds without compilation, and the test accuracy after the last epoch."""
    fit = lambda epochs: jm.fit(net, params, (X, Y), optimizer=optax.sgd, hyper={"learning_rate": rate},
                                epochs=epochs, batch_size=size, key=jax.random.key(size), preprocess=scale_pixels,
                                progress=False)  # fmt: skip
    fit(1)  # compiles
    result = fit(epochs)
    Y_hat = jm.predict(net, result.params, pictures.X_test, preprocess=scale_pixels)
    return result.history, float(jm.metrics.accuracy(Y_hat, pictures.Y_test))


def _row(settings: Settings, m: int, size: int, rate: float, history, accuracy: float, noise) -> dict[str, str]:
    below = np.flatnonzero(history["cost"] <= settings.reach)
    seconds = np.cumsum(history["seconds"])
    reached = (f"{history['epoch'][below[0]]}", f"{seconds[below[0]]:.2f}") if len(below) else ("", "")
    return {"batch size": f"{size:,}" + (" (full)" if size == m else ""), "rate": f"{rate:g}",
            "steps an epoch": f"{-(-m // size):,}", "epochs": str(len(seconds)), "seconds": f"{seconds[-1]:.1f}",
            "cost": f"{history['cost'][-1]:.4f}", "test accuracy": f"{accuracy:.2%}",
            f"epochs to {settings.reach:g}": reached[0], f"seconds to {settings.reach:g}": reached[1],
            "noise of a step": f"{noise[0]:.3g}", "predicted": f"{noise[1]:.3g}"}  # fmt: skip


def _path(net: jm.MLP, params, X, Y, size: int, rate: float, settings: Settings) -> np.ndarray:
    """The cost of each step's batch before the step, over the first steps."""
    m = len(X)
    keys = jax.random.split(jax.random.key(settings.key), -(-settings.shown * size // m))
    order = jax.vmap(lambda key: jax.random.permutation(key, m))(keys).ravel()[: settings.shown * size]

    def step(params, batch):
        J, grads = jm.value_and_grad(net, params, X[batch], Y[batch], preprocess=scale_pixels)
        return jax.tree.map(lambda w, g: w - rate * g, params, grads), J

    return np.asarray(jax.lax.scan(step, params, order.reshape(-1, size))[1])


def _picture(m: int, histories, paths, noise):
    figure, axes = plotting.figure(2, 2, size=(5.4, 3.7))
    (by_epoch, by_second), (by_step, by_size) = axes
    name = lambda size: f"{size:,} (full)" if size == m else f"{size:,}"
    for (size, history), color in zip(histories.items(), plotting.PALETTE, strict=False):
        steps = -(-m // size)
        # the mean cost over an epoch's batches is the cost in the middle of the epoch
        at = history["epoch"] - 1 + (steps - 1) / (2 * steps)
        seconds = at * history["seconds"].sum() / len(at)
        by_epoch.plot(at, history["cost"], color=color, label=name(size))
        by_second.plot(seconds[1:], history["cost"][1:], color=color)
        by_step.plot(np.arange(1, len(paths[size]) + 1), paths[size], color=color, linewidth=0.9)
    shortest = min(len(history["epoch"]) for history in histories.values())
    by_epoch.set(xlabel="epoch", ylabel="cost (mean loss)", yscale="log", xlim=(0, shortest))
    by_second.set(xlabel="time without compilation (seconds)", ylabel="cost (mean loss)", xscale="log", yscale="log")
    by_step.set(xlabel="step", ylabel="cost of the step's batch (mean loss)", ylim=(0, 4))
    sizes = np.asarray(list(noise))  # the full batch has none
    measured, predicted = np.asarray(list(noise.values())).T
    by_size.loglog(sizes, measured, "o", color=plotting.BLUE, label="measured")
    by_size.loglog(sizes, predicted, "--", color="gray", label="variance of one example / b")
    by_size.set(xlabel="batch size $b$ (examples)", ylabel="noise of a step, $E\\|g_b - g\\|^2\\; / \\;\\|g\\|^2$")
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    by_epoch.legend(title="batch size", fontsize="small")
    by_size.legend(fontsize="small")
    return figure
