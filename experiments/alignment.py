"""Nine backward rules on MNIST: accuracy, and the angle of each rule's gradient to the true one.

Each rule trains a network 784-256-256-10 from the same weights. After each epoch the run takes the angle between the
rule's mean gradient and backpropagation's at each layer, on the same 1,000 examples. Expect feedback alignment and
direct feedback alignment to reach at least 96.5%. Expect their angle at the first hidden layer to fall from about 90
degrees (random) to below 80: the weights learn to agree with the feedback (Lillicrap et al. 2016, Nokland 2016).
Backpropagation's angle is 0. Kolen and Pollack's feedback ends near backpropagation.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting, rules, training
from jaxmlp.data import scale_pixels


@dataclass(frozen=True)
class Settings:
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers
    activation: str = "tanh"  # activation of the hidden layers
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.1  # first rate; it falls to 0 along a cosine
    decay: float = 1e-4  # decay of the weights in each step of Kolen and Pollack's rule
    key: int = 0
    quick: bool = False  # 12,000 examples, 2 epochs, three rules


def contestants(settings: Settings, steps: int) -> dict[str, tuple[jm.Rule, Any]]:
    """Each rule with its optimizer: the same momentum for all, and a decay for Kolen and Pollack."""
    sgd = optax.sgd(optax.cosine_decay_schedule(settings.learning_rate, steps), momentum=0.9)
    named = {
        "backpropagation": rules.backprop,
        "feedback alignment": rules.feedback_alignment(),
        "direct feedback alignment": rules.direct_feedback_alignment(),
        "sign symmetric": rules.normalized(rules.sign_symmetric()),
        "sign, random magnitudes": rules.sign_symmetric("he"),
        "clipped": rules.clipped(0.1),
        "normalized": rules.normalized(),
        "dropped": rules.dropped(0.5),
    }
    pairs = {name: (rule, sgd) for name, rule in named.items()}
    decayed = optax.chain(sgd, optax.add_decayed_weights(-settings.decay))
    pairs["Kolen-Pollack"] = rules.kolen_pollack(settings.decay), decayed
    if settings.quick:
        return {name: pairs[name] for name in ("backpropagation", "feedback alignment", "direct feedback alignment")}
    return pairs


def train(net: jm.MLP, rule: jm.Rule, optimizer, data: training.Data, test, settings: Settings, epochs: int):
    """The test accuracy after the last epoch, and the angles `(epochs + 1, layers)`."""
    plan = training.Plan(net, optimizer, settings.batch_size, -(-len(data.X) // settings.batch_size),
                         preprocess=scale_pixels, rule=rule, accuracy=True)  # fmt: skip
    key = jax.random.key(settings.key)
    state = training.start(plan, jm.init(net, key), data, key)
    epoch = jax.jit(training.epoch, static_argnums=0, donate_argnums=1)
    X, Y = data.X[:1000], data.Y[:1000]

    @jax.jit
    def angles(params, rule_state):
        by_rule = jm.backprop(net, params, X, Y, rule=rule, rule_state=rule_state, preprocess=scale_pixels)
        return jm.alignment(by_rule, jm.backprop(net, params, X, Y, preprocess=scale_pixels))

    seen = [np.asarray(angles(state.params, state.rule_state))]
    for _ in range(epochs):
        state, _scores = epoch(plan, state, data)
        seen.append(np.asarray(angles(state.params, state.rule_state)))
    Y_hat = jm.predict(net, state.params, test[0], preprocess=scale_pixels)
    return float(jm.metrics.accuracy(Y_hat, test[1])), np.stack(seen)


def run(settings: Settings, out: Output) -> dict[str, float]:
    pictures = datasets.load("mnist")
    m, epochs = (12_000, 2) if settings.quick else (len(pictures.X), settings.epochs)
    data = training.Data(jnp.asarray(pictures.X[:m]), jnp.asarray(pictures.Y[:m]))
    net = jm.MLP((784, *settings.hidden, 10), settings.activation, "softmax", "cross_entropy")
    rows, angles, shown = [], {}, {}
    for name, (rule, optimizer) in contestants(settings, epochs * -(-m // settings.batch_size)).items():
        began = time.perf_counter()
        test = pictures.X_test, pictures.Y_test
        accuracy, angles[name] = train(net, rule, optimizer, data, test, settings, epochs)
        row = {"rule": name, "test accuracy": f"{accuracy:.2%}"}
        for layer in range(1, net.depth):
            first, last = angles[name][0, layer - 1], angles[name][-1, layer - 1]
            row[f"angle at layer {layer}"] = f"{first:.1f} to {last:.1f}"
        rows.append(row | {"seconds": f"{time.perf_counter() - began:.1f}"})
        shown |= {f"{name}, accuracy": accuracy, f"{name}, angle": float(angles[name][-1, 0])}
        print(f"{name}: {accuracy:.2%}", flush=True)
    out.table(f"{net}, {epochs} epochs; angles to backpropagation's gradient in degrees, before and after", rows)
    columns = {f"{name}, layer {l + 1}": a[:, l] for name, a in angles.items() for l in range(net.depth)}
    out.numbers("angles", {"epoch": range(epochs + 1), **columns})
    figure, axes = plotting.figure(1, net.depth - 1, size=(5, 4), sharey=True, squeeze=False)
    styles = ["-"] * len(plotting.PALETTE) + ["--"] * len(plotting.PALETTE)
    for layer, ax in enumerate(axes[0], start=1):
        for (name, a), color, style in zip(angles.items(), plotting.PALETTE * 2, styles, strict=False):
            ax.plot(range(epochs + 1), a[:, layer - 1], style, color=color, label=name)
        ax.axhline(90, color="gray", linewidth=0.8, linestyle=":")
        ax.set(xlabel="epoch", title=f"hidden layer {layer}", ylim=(-3, 100))
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("angle to the true gradient (degrees)")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small")
    out.picture("angles", figure)
    out.close()
    return shown
