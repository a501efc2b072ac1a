"""Speed: an epoch by hand against jax.grad, bytes against floats, and readouts against vmap(grad) and the peers.

The peers are alternated in one run, round by round, and compared as ratios within a round; compilation is timed
apart. Expect a ratio of 1.00 to jax.grad, at most 1.03 (the same program against itself wavers by 2%), uint8
pictures that take a quarter of the memory and less time, and readouts of a trace (norms, clipping, second moments) near
the price of the mean gradient, far below vmap(grad), BackPACK and Opacus (the extra `benchmark` installs these).
"""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import _readout_benchmark as readouts
from experiments import _rule_benchmark as by_rule
from experiments import _training_benchmark as training_costs
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting, rules, training
from jaxmlp.data import scale_pixels


@dataclass(frozen=True)
class Settings:
    rounds: int = 11  # how often each peer is timed; the median is reported
    batch_sizes: tuple[int, ...] = (32, 128, 512)
    learning_rate: float = 0.01
    quick: bool = False  # the smallest network at batch 128, 5 rounds; neither other rules nor the peers


# Each network with as many examples as make an epoch a few tenths of a second long.
NETWORKS = {(784, 64, 10): 60_000, (784, 800, 10): 12_800, (784, 1024, 1024, 10): 6_400}


def by_autodiff(plan, params, rule_state, problem):
    """What `training.step.by_hand` returns, with the gradient by jax.value_and_grad of the same forward pass."""

    X, Y, weights, masks, _ = problem

    def mean_loss(params):
        def example(x, y, masks):
            y_hat, tape = jm.forward(plan.net, params, x, masks)
            return jm.output_loss(plan.net, tape, y), y_hat

        losses, Y_hat = jax.vmap(example)(X, Y, masks)
        return losses.mean() if weights is None else weights @ losses / weights.sum(), (losses, Y_hat)

    (_, (losses, Y_hat)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    return losses, Y_hat, grads


@dataclass
class Contestant:
    """A compiled epoch that is run again and again from where it left off."""

    run: Callable
    state: training.TrainState
    data: training.Data
    compile_seconds: float

    @classmethod
    def enter(
        cls,
        net: jm.MLP,
        data: training.Data,
        batch_size: int,
        rate: float,
        preprocess,
        gradient=None,
        rule=rules.backprop,
    ) -> "Contestant":
        steps = -(-len(data.X) // batch_size)
        plan = training.Plan(net, optax.sgd(rate), batch_size, steps, preprocess=preprocess, rule=rule, accuracy=True)
        state = training.start(plan, jm.init(net, jax.random.key(0)), data, jax.random.key(1))
        began = time.perf_counter()
        epoch = jax.jit(partial(training.epoch, plan, gradient=gradient), donate_argnums=0)
        compiled = epoch.lower(state, data).compile()
        return cls(compiled, state, data, time.perf_counter() - began)

    def seconds(self) -> float:
        """The time of one more epoch."""
        began = time.perf_counter()
        self.state, metrics = self.run(self.state, self.data)
        jax.block_until_ready((self.state.params, metrics))
        return time.perf_counter() - began


def alternate(contestants: dict[str, Contestant], rounds: int) -> dict[str, np.ndarray]:
    """Each contestant's seconds, round by round, after one round that is not counted; every other round backwards."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            times[name].append(contestants[name].seconds())
    return {name: np.asarray(seconds[1:]) for name, seconds in times.items()}


def _readouts(networks, pictures, rounds: int, out: Output, quick: bool) -> dict[str, float]:
    """What else one backward pass answers, at batch 512; the ratio of each readout to the mean gradient."""
    costs = {}
    for sizes in networks:
        if sizes == (784, 800, 10):
            continue
        net, name = jm.MLP(sizes, "relu", "softmax", "cross_entropy"), "-".join(map(str, sizes))
        params = jm.init(net, jax.random.key(0))
        X, Y = jax.vmap(scale_pixels)(jnp.asarray(pictures.X[:512])), jnp.asarray(pictures.Y[:512])
        rows, ratios = readouts.ratios(net, params, X, Y, rounds, repeats=1 if sizes[1] > 100 else 10)
        costs |= {f"{name}, {quantity}": ratio for quantity, ratio in ratios.items()}
        out.table(f"readouts at {name}, batch 512, beside the mean gradient (forward, backward and product)", rows)
        if quick:
            continue
        out.table(f"the mean gradient and a quantity at {name}, batch 512, ours against the peers",
                  readouts.against_torch(net, params, X, Y, rounds))  # fmt: skip
        m = networks[sizes]
        data = training.Data(jnp.asarray(pictures.X[:m]), jnp.asarray(pictures.Y[:m]))
        epochs = alternate({rule_name: Contestant.enter(net, data, 128, 0.01, scale_pixels, rule=rule)
                            for rule_name, rule in by_rule.RULES.items()}, rounds)  # fmt: skip
        out.table(f"an epoch of {m:,} examples by other rules at {name}, batch 128", [
            {"rule": rule_name, "ms": f"{1e3 * np.median(seconds):.1f}",
             "ratio": f"{np.median(seconds / epochs['backpropagation']):.3f}"}
            for rule_name, seconds in epochs.items()
        ])  # fmt: skip
        with TemporaryDirectory() as folder:
            rows, ratios = training_costs.table(net, pictures.X[:m], pictures.Y[:m], rounds, folder)
        costs |= {f"{name}, {option}": ratio for option, ratio in ratios.items()}
        out.table(f"an epoch of {m:,} examples with options of fit at {name}, batch 128", rows)
        rows, ratios = by_rule.table(net, params, X, Y, rounds, repeats=1 if sizes[1] > 100 else 10)
        costs |= {f"{name}, {rule}": ratio for rule, ratio in ratios.items()}
        out.table(f"other rules and as_function at {name}, batch 512, beside backpropagation", rows)
        out.table(f"{name}, batch 512, against vmap(grad)", readouts.against_formed(net, params, X, Y))
    return costs


def run(settings: Settings, out: Output) -> dict[str, float]:
    pictures = datasets.load("mnist")
    networks = dict(list(NETWORKS.items())[:1]) if settings.quick else NETWORKS
    rounds, batch_sizes = (5, (128,)) if settings.quick else (settings.rounds, settings.batch_sizes)
    out.say(f"{platform.processor() or platform.machine()}, {jax.devices()}, jax {jax.__version__}; "
            f"median of {rounds} alternated rounds")  # fmt: skip
    rows, ratios, bytes_rows = [], {}, []
    for sizes, m in networks.items():
        net = jm.MLP(sizes, "relu", "softmax", "cross_entropy")
        data = training.Data(jnp.asarray(pictures.X[:m]), jnp.asarray(pictures.Y[:m]))
        floats = data._replace(X=jax.vmap(scale_pixels)(data.X))
        for batch_size in batch_sizes:
            enter = partial(Contestant.enter, net, batch_size=batch_size, rate=settings.learning_rate)
            peers = {
                "by hand": enter(data, preprocess=scale_pixels),
                "jax.grad": enter(data, preprocess=scale_pixels, gradient=by_autodiff),
                "floats": enter(floats, preprocess=None),
            }
            times = alternate(peers, rounds)
            ratio = times["by hand"] / times["jax.grad"]
            name = "-".join(map(str, sizes))
            ratios[f"{name}, {batch_size}"] = ratio
            ms = {peer: f"{1e3 * np.median(seconds):.1f}" for peer, seconds in times.items()}
            rows.append({"network": name, "batch": str(batch_size), "examples": f"{m:,}", "by hand (ms)": ms["by hand"],
                         "jax.grad (ms)": ms["jax.grad"], "ratio": f"{np.median(ratio):.3f}",
                         "quartiles": "{:.3f} to {:.3f}".format(*np.percentile(ratio, [25, 75])),
                         "compile (s)": f"{peers['by hand'].compile_seconds:.2f}"})  # fmt: skip
            bytes_rows.append({"network": name, "batch": str(batch_size), "uint8 (ms)": ms["by hand"],
                               "float32 (ms)": ms["floats"],
                               "ratio": f"{np.median(times['by hand'] / times['floats']):.3f}",
                               "uint8 (MB)": f"{data.X.nbytes / 1e6:.0f}",
                               "float32 (MB)": f"{floats.X.nbytes / 1e6:.0f}"})  # fmt: skip
    out.table("an epoch by hand against the same epoch by jax.grad", rows)
    out.table("pictures as bytes, scaled inside the step, against floats", bytes_rows)
    costs = _readouts(networks, pictures, rounds, out, settings.quick)
    out.numbers("ratio_to_autodiff", ratios)
    figure, ax = plotting.figure(size=(7, 1 + 0.35 * len(ratios)))
    ax.boxplot(list(ratios.values()), orientation="horizontal", tick_labels=list(ratios), whis=(0, 100))
    ax.axvline(1, color="grey", linestyle="--")
    ax.set_xlabel("epoch's time by hand / by jax.grad")
    ax.invert_yaxis()
    out.picture("ratio_to_autodiff", figure)
    out.close()
    return {"median_ratio": float(np.median([np.median(r) for r in ratios.values()])),
            **costs, "worst_ratio": float(max(np.median(r) for r in ratios.values()))}  # fmt: skip
