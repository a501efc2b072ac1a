"""The same quantities, the slow and obvious way, with nothing of jaxmlp in them; a layer unpacks to `(W, b)`."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

ACTIVATIONS = {
    "identity": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + jnp.exp(-z)),
    "tanh": jnp.tanh,
    "relu": lambda z: jnp.where(z > 0, z, 0.0),
    "leaky_relu": lambda z: jnp.where(z >= 0, z, 0.01 * z),
    "elu": lambda z: jnp.where(z > 0, z, jnp.exp(z) - 1),
    "softplus": lambda z: jnp.log(1 + jnp.exp(z)),
    "gelu": lambda z: z / 2 * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + jnp.exp(-z)),
    "softmax": lambda z: jnp.exp(z) / jnp.exp(z).sum(),
}

LOSSES = {
    "squared_error": lambda y_hat, y: 0.5 * jnp.sum((y_hat - y) ** 2),
    "binary_cross_entropy": lambda a, y: -jnp.sum(y * jnp.log(a) + (1 - y) * jnp.log(1 - a)),
    "cross_entropy": lambda a, y: -jnp.sum(y * jnp.log(a)),
}


def network(hidden, output, params, x, masks=None):
    """y_hat of one example, layer by layer."""
    a = x
    for l, (W, b) in enumerate(params):
        if masks is not None:
            a = masks[l] * a
        name = hidden[l] if l < len(params) - 1 else output
        a = ACTIVATIONS[name](jnp.dot(W, a) + b)
    return a


def cost(hidden, output, loss, params, X, Y, weights=None, masks=None):
    """The mean loss, by a loop over the examples. Y holds rows."""
    total, count = 0.0, 0.0
    for i in range(len(X)):
        mask = None if masks is None else [m[i] for m in masks]
        w = 1.0 if weights is None else weights[i]
        total = total + w * LOSSES[loss](network(hidden, output, params, X[i], mask), Y[i])
        count = count + w
    return total / count


def sgd(params, batches, rate, gradient):
    """Plain descent, one batch after the other."""
    for X, Y in batches:
        grads = gradient(params, X, Y)
        params = jax.tree.map(lambda p, g: np.asarray(p) - rate * np.asarray(g), params, grads)
    return params


def sum_over_paths(params, df, x, delta_out, unit, entry):
    """One weight of the first layer, W[unit, entry]: the product along each path to the outputs, summed over all paths.

    `df[l]` are the derivatives f'(z) of the hidden layers at this example, as NumPy arrays.
    """
    Ws = [np.asarray(W) for W, _ in params]

    def onward(layer, j):  # from unit j of hidden layer `layer` to the outputs, path by path
        if layer == len(Ws) - 1:
            return float(delta_out[j])
        return sum(df[layer][j] * Ws[layer + 1][k, j] * onward(layer + 1, k) for k in range(Ws[layer + 1].shape[0]))

    return float(x[entry]) * onward(0, unit)


def gradients_one_by_one(net_cost, params, X, Y, masks=None):
    """`jax.grad` of each example's own cost, stacked: leaves `(m, ...)`."""
    gradient = jax.jit(jax.grad(net_cost))
    X, Y, masks = jax.tree.map(np.asarray, (X, Y, masks))
    each = [
        gradient(params, X[i : i + 1], Y[i : i + 1], None if masks is None else [k[i : i + 1] for k in masks])
        for i in range(len(X))
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def as_rows(tree, lead=1):
    """A tree of arrays with `lead` leading axes as one array whose last axis runs over all parameters."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def linearize(hidden, output, loss, canonical, params, X, Y):
    """Each example's gradient `(m, p)`, the Jacobian of its `z^K` `(m, k, p)`, and the loss's Hessian there.

    That Hessian is its Gauss-Newton part where the pair is not canonical. Y holds rows.
    """
    flat, unravel = ravel_pytree(params)
    last = lambda theta, x: network(hidden, "identity", unravel(theta), x)
    f = ACTIVATIONS[output]

    def one(x, y):
        z = last(flat, x)
        of_z, of_output = lambda z: LOSSES[loss](f(z), y), lambda a: LOSSES[loss](a, y)
        J = jax.jacobian(f)(z)
        H = jax.hessian(of_z)(z) if canonical else J.T @ jax.hessian(of_output)(f(z)) @ J
        return jax.grad(lambda theta: of_z(last(theta, x)))(flat), jax.jacobian(last)(flat, x), H

    return [np.asarray(part) for part in jax.jit(jax.vmap(one))(X, Y)]


def layer_inputs(hidden, params, X):
    """`(a, 1)` of each layer, `(m, i + 1)`."""
    inputs, a = [], np.asarray(X)
    for l, (W, b) in enumerate(params):
        inputs.append(np.hstack([a, np.ones((len(a), 1))]))
        if l < len(hidden):
            a = np.asarray(ACTIVATIONS[hidden[l]](a @ np.asarray(W).T + np.asarray(b)))
    return inputs


def by_layers(rows, params):
    """Rows over all parameters, W by rows and then b, as each layer's `[W b]`, `(..., o, i + 1)`."""
    made, start = [], 0
    for W, b in params:
        (o, i), end = W.shape, start + W.size + b.size
        part = rows[..., start:end]
        lead = part.shape[:-1]
        made.append(np.concatenate([part[..., : o * i].reshape(*lead, o, i), part[..., o * i :, None]], axis=-1))
        start = end
    return made


def deltas_by_rule(rule, weights, df, delta_out, feedback=None, max_norm=None):
    """One example's `delta^1 .. delta^(K-1)` by a named rule; `df[l]` are f' and `feedback[l]` the B of layer l."""
    delta, below = np.asarray(delta_out), []
    start = delta
    for l in reversed(range(len(df))):
        W, B = np.asarray(weights[l + 1]), None if feedback is None else np.asarray(feedback[l])
        if rule == "feedback_alignment":
            error = B.T @ delta
        elif rule == "direct_feedback_alignment":
            error = B.T @ start
        elif rule == "sign_symmetric":
            error = np.sign(W).T @ delta
        elif rule == "sign_symmetric_magnitudes":
            error = (np.sign(W) * np.abs(B)).T @ delta
        elif rule == "dropped":
            error = B * (W.T @ delta)
        else:
            error = W.T @ delta
        delta = df[l] * error
        if rule == "clipped":
            delta = delta * min(1, max_norm / np.linalg.norm(delta))
        if rule == "normalised":
            delta = delta * np.linalg.norm(start) / np.linalg.norm(delta)
        below.insert(0, delta)
    return below


def exact_loss(output, loss, z, y):
    """The loss of one example and its derivative in z, by the textbook's formulas in 60 decimal digits."""
    with decimal.localcontext(prec=60):
        z, y = [decimal.Decimal(float(v)) for v in z], [decimal.Decimal(float(v)) for v in y]
        if output == "softmax":
            e = [(v - max(z)).exp() for v in z]
            a = [v / sum(e) for v in e]
            rest = [sum(e[:i] + e[i + 1 :]) / sum(e) for i in range(len(e))]  # 1 - a
        else:
            a, rest = [1 / (1 + (-v).exp()) for v in z], [1 / (1 + v.exp()) for v in z]
        log = lambda weight, v: weight * v.ln() if weight else decimal.Decimal(0)
        over = lambda weight, v: weight / v if weight else decimal.Decimal(0)
        if loss == "squared_error":
            value, df = (
                sum((v - t) ** 2 for v, t in zip(a, y, strict=True)) / 2,
                [v - t for v, t in zip(a, y, strict=True)],
            )
        else:
            both = loss == "binary_cross_entropy"
            no = [(1 - t) * both for t in y]
            value = -sum(log(t, v) + log(u, r) for t, u, v, r in zip(y, no, a, rest, strict=True))
            df = [over(u, r) - over(t, v) for t, u, v, r in zip(y, no, a, rest, strict=True)]
        if output == "softmax":
            jacobian = lambda i, j: a[i] * rest[i] if i == j else -a[i] * a[j]
            delta = [sum(df[i] * jacobian(i, j) for i in range(len(z))) for j in range(len(z))]
        else:
            delta = [d * v * r for d, v, r in zip(df, a, rest, strict=True)]
        return float(value), [float(d) for d in delta]
