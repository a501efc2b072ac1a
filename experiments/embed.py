"""The hand-written network as the head of a small convolutional network, trained end to end.

`jm.as_function(net)` is a function of `(params, x)` whose derivative is the hand-written recursion. JAX differentiates
the convolutions before it, and their gradient passes through the head. Expect every array of the gradient to equal the
gradient with a plain head. Expect at least 98% of MNIST's test set after four epochs.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting


@dataclass(frozen=True)
class Settings:
    channels: tuple[int, int] = (8, 16)  # channels of the two convolutions
    hidden: int = 64  # hidden units of the head
    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2e-3  # first rate of Adam; it falls to 0 along a cosine
    key: int = 0
    quick: bool = False  # 6,000 examples, one epoch


def body(kernels, pictures):
    """Two convolutions 3 x 3 with ReLU; the stride of each halves the picture."""
    a = pictures[:, None].astype(kernels[0].dtype) / 255
    for kernel in kernels:
        a = jax.lax.conv_general_dilated(a, kernel, window_strides=(2, 2), padding="SAME")
        a = jax.nn.relu(a)
    return a.reshape(len(pictures), -1)


def plain_head(params, a):
    """The head in plain JAX, which autodiff differentiates."""
    return jax.nn.relu(a @ params[0].W.T + params[0].b[None]) @ params[1].W.T + params[1].b[None]


def cost(head, params, X, Y):
    """The mean cross-entropy of `head` on `body`."""
    kernels, layers = params
    scores = head(layers, body(kernels, X))
    return optax.softmax_cross_entropy_with_integer_labels(scores, Y).mean()


def run(settings: Settings, out: Output) -> dict[str, float]:
    pictures = datasets.load("mnist")
    m, epochs = (6000, 1) if settings.quick else (len(pictures.X), settings.epochs)
    X, Y = jnp.asarray(pictures.X[:m]), jnp.asarray(pictures.Y[:m])
    net = jm.MLP((7 * 7 * settings.channels[1], settings.hidden, 10), "relu")  # identity output: scores
    head = jm.as_function(net)
    keys = jax.random.split(jax.random.key(settings.key), 3)
    draw = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)
    shapes = [(settings.channels[0], 1, 3, 3), (settings.channels[1], settings.channels[0], 3, 3)]
    kernels = tuple(draw(k, shape, jnp.float32) for k, shape in zip(keys, shapes, strict=False))
    params = kernels, jm.init(net, keys[2])
    worst = _compare_heads(head, params, X[:64], Y[:64], out)

    steps = -(-m // settings.batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, epochs * steps))

    @jax.jit
    def epoch(params, opt_state, key):
        # `resize` repeats examples to fill the last batch
        order = jnp.resize(jax.random.permutation(key, m), (steps, settings.batch_size))

        def step(carry, index):
            params, opt_state = carry
            J, grads = jax.value_and_grad(lambda p: cost(head, p, X[index], Y[index]))(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), J

        return jax.lax.scan(step, (params, opt_state), order)

    opt_state, rows, costs = jax.jit(optimizer.init)(params), [], []
    score = jax.jit(lambda p, X: head(p[1], body(p[0], X)))
    for number in range(1, epochs + 1):
        began = time.perf_counter()
        (params, opt_state), J = epoch(params, opt_state, jax.random.fold_in(keys[2], number))
        costs += J.tolist()
        accuracy = float(jm.metrics.accuracy(score(params, pictures.X_test), pictures.Y_test))
        rows.append({"epoch": str(number), "cost": f"{float(J.mean()):.4f}", "test accuracy": f"{accuracy:.2%}",
                     "seconds": f"{time.perf_counter() - began:.1f}"})  # fmt: skip
    out.table(f"two convolutions in plain JAX, head {net}", rows)
    out.numbers("cost", {"step": range(1, len(costs) + 1), "cost": costs})
    out.picture("cost", _picture(costs))
    out.close()
    return {"accuracy": accuracy, "difference": worst}


def _picture(costs: list[float]):
    figure, ax = plotting.figure()
    ax.semilogy(np.arange(1, len(costs) + 1), costs, color=plotting.BLUE, linewidth=0.6)
    ax.set(xlabel="step", ylabel="cost of the batch (mean loss)")
    ax.grid(alpha=0.3)
    return figure


def _compare_heads(head, params, X, Y, out: Output) -> float:
    """The largest error of the gradient with the hand-written head against a plain one, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), params)
        pairs = [jax.jit(jax.grad(lambda p, h=h: cost(h, p, X, Y)))(params) for h in (head, plain_head)]
        pairs = jax.tree.map(np.asarray, pairs)
        names = ["convolution 1", "convolution 2", "head W^1", "head b^1", "head W^2", "head b^2"]
        rows, worst = [], 0.0
        for name, ours, plain in zip(names, *map(jax.tree.leaves, pairs), strict=True):
            error = float(np.linalg.norm(ours - plain) / np.linalg.norm(plain))
            worst = max(worst, error)
            rows.append({"gradient of": name, "norm": f"{np.linalg.norm(ours):.4g}", "error": f"{error:.1e}"})
    out.table("the gradient with the hand-written head against a plain one, float64", rows)
    return worst
