"""Traces with rows, with constants, and taken up again; every readout against the dense gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import DEEP, Problem, tree_error

import jaxmlp as jm
from jaxmlp.starts import pre_activation_rows, unit_rows

M, ROWS, SIZES = 5, 3, ((4, 3), (2, 4))  # (o, i) of each layer


@pytest.fixture(autouse=True)
def double(x64):
    pass


def random_trace(seed=0, rows=ROWS, constants=True):
    rng = np.random.default_rng(seed)
    lead = (M,) if rows is None else (M, rows)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    each = lambda *shapes: tuple(draw(*shape) for shape in shapes)
    deltas, inputs = each(*[(*lead, o) for o, _ in SIZES]), each(*[(M, i) for _, i in SIZES])
    pre_activations = each(*[(M, o) for o, _ in SIZES])
    ones = each(*[(M,)] * len(SIZES)) if constants else None
    return jm.Trace(inputs, pre_activations, deltas, draw(M, 2), abs(draw(M)), constants=ones)


def dense(trace):
    """Each layer's gradients `(m, c, o, i + 1)`, the bias's column last."""
    made = []
    for l, delta in enumerate(trace.deltas):
        delta = np.asarray(delta)[:, None] if delta.ndim == 2 else np.asarray(delta)
        constant = np.ones(M) if trace.constants is None else np.asarray(trace.constants[l])
        made.append(np.einsum("mco,mi->mcoi", delta, np.column_stack([trace.inputs[l], constant])))
    return made


def layers(arrays):
    """Arrays `(.., o, i + 1)` as layers."""
    return tuple(jm.Layer(g[..., :-1], g[..., -1]) for g in arrays)


@jax.jit
def read(trace, other, w):
    return {
        "mean_gradient": jm.mean_gradient(trace, w),
        "second_moment": jm.second_moment(trace, w),
        "variance": jm.variance(trace, w),
        "noise_scale": jm.noise_scale(trace),
        "gram": jm.gradient_gram(trace, other),
        "norms": jm.per_example_norms(trace),
        "layer_norms": jm.layer_norms(trace),
        "delta_norms": jm.delta_norms(trace),
        "factors": jm.kronecker_factors(trace, w),
        "each": jm.per_example_gradients(trace),
        "clipped": jm.clipped_gradient(trace, 0.7, w),
        "private": jm.private_gradient(trace, 0.7, 0.0, jax.random.key(0), weights=jnp.minimum(w, 1)),
        "alignment": jm.alignment(trace, trace._replace(deltas=tuple(-delta for delta in trace.deltas))),
    }


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("rows", [None, ROWS])
def test_every_readout_takes_rows_and_constants(rows, constants):
    trace, other = random_trace(0, rows, constants), random_trace(1, None, constants)
    w = np.linspace(0.5, 2, M)
    share = w / w.sum()
    got = read(trace, other, jnp.asarray(w))
    g, h = dense(trace), dense(other)
    flat = lambda gs: np.concatenate([x.reshape(M, x.shape[1], -1) for x in gs], axis=2)  # (m, c, p)
    squeeze = (lambda x: x[:, 0]) if rows is None else (lambda x: x)
    mean = lambda f: layers([np.einsum("m,mcoi->oi", share, f(x)) for x in g])
    assert tree_error(got["mean_gradient"], mean(lambda x: x)) <= 1e-12
    assert tree_error(got["second_moment"], mean(np.square)) <= 1e-12
    center = lambda x: x - np.einsum("m,mcoi->coi", share, x)[None]
    assert tree_error(got["variance"], mean(lambda x: center(x) ** 2)) <= 1e-12
    whole = flat(g)
    spread = ((whole - whole.mean(0)) ** 2).sum() / (M - 1)  # tr(Sigma) without bias
    assert got["noise_scale"] == pytest.approx(spread / ((whole.mean(0) ** 2).sum() - spread / M), rel=1e-10)
    gram = np.einsum("mcp,np->mnc", whole, flat(h)[:, 0])
    assert tree_error(got["gram"], gram[..., 0] if rows is None else gram) <= 1e-12
    assert tree_error(got["norms"], squeeze(np.linalg.norm(whole, axis=2))) <= 1e-12
    of_layers = np.stack([np.linalg.norm(x.reshape(*x.shape[:2], -1), axis=2) for x in g], axis=-1)
    assert tree_error(got["layer_norms"], squeeze(of_layers)) <= 1e-12
    of_deltas = np.stack([np.linalg.norm(delta, axis=-1) for delta in trace.deltas], axis=-1)
    assert tree_error(got["delta_norms"], of_deltas) <= 1e-12
    assert tree_error(got["each"], layers([squeeze(x) for x in g])) <= 1e-12
    for l, (A, G) in enumerate(got["factors"]):
        constant = np.ones(M) if trace.constants is None else trace.constants[l]
        a = np.column_stack([trace.inputs[l], constant])
        delta = np.asarray(trace.deltas[l]).reshape(M, -1, SIZES[l][0])
        assert tree_error(A, np.einsum("m,mi,mj->ij", share, a, a)) <= 1e-12
        assert tree_error(G, np.einsum("m,mco,mcp->op", share, delta, delta)) <= 1e-12
    summed = whole.sum(1)  # an example's gradient is the sum of its rows
    factor = np.minimum(1, 0.7 / np.linalg.norm(summed, axis=1))
    clip = lambda v: layers([np.einsum("m,mcoi->oi", v * factor, x) for x in g])
    assert tree_error(got["clipped"], clip(share)) <= 1e-12
    assert tree_error(got["private"], clip(np.minimum(w, 1) / M)) <= 1e-12
    np.testing.assert_allclose(got["alignment"], 180)


def test_the_gram_of_two_traces_with_rows():
    one, other = random_trace(0, 3, False), random_trace(1, 2, True)
    g, h = ([x.reshape(M, x.shape[1], -1) for x in dense(trace)] for trace in (one, other))
    expected = sum(np.einsum("mcp,nkp->mnck", x, y) for x, y in zip(g, h, strict=True))
    assert tree_error(jm.gradient_gram(one, other), expected) <= 1e-12
    narrow = one._replace(inputs=tuple(a[:, :2] for a in one.inputs))
    with pytest.raises(ValueError, match=r"other is Trace\(5 examples of 2-2-2 with 3 rows, .*, expected the widths"):
        jm.gradient_gram(one, narrow)


MASKED = Problem((4, 5, 3, 3), ("silu", "tanh"), "softmax", "cross_entropy", 6, masked=True, integer_classes=True)


@pytest.mark.parametrize("start", [jm.output_delta, jm.hessian_root, unit_rows, pre_activation_rows])
def test_a_trace_taken_up_again_is_that_of_the_whole_pass(start):
    """With other labels and dropout masks; and rows are the recursion from each row."""
    params, X, Y, _, _, masks = MASKED.make()
    net, labels = MASKED.net, jnp.roll(Y, 1)
    trace = jm.backprop(net, params, X, Y, masks=masks)
    again = jm.restart(net, params, trace, labels, start=start)
    expected = jm.backprop(net, params, X, labels, masks=masks, start=start)
    assert tree_error(again, expected) <= 1e-15
    example = [mask[2] for mask in masks]
    _, tape = jm.forward(net, params, X[2], example)
    rows = np.atleast_2d(start(net, tape, labels[2]))
    for c, row in enumerate(rows):
        deltas = jm.backward(net, params, tape, jnp.asarray(row))
        got = [delta[2].reshape(len(rows), -1)[c] for delta in again.deltas]
        assert tree_error(got, list(deltas)) <= 1e-12
    assert tree_error(jm.restart(net, params, trace), trace) == 0  # its own labels


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda net, p, t, X, Y: jm.backprop(net, p, X, Y, start=3), "start is 3, expected a function of the network"),
        (lambda net, p, t, X, Y: jm.backprop(net, p, X, Y, start=lambda *_: jnp.zeros(3)),
         r"start gives .*3.*, expected \(2,\) or rows \(c, 2\) of float64"),
        (lambda net, p, t, X, Y: jm.restart(net, p, t._replace(labels=None)), "Y is None, and the trace has no labels"),
        (lambda net, p, t, X, Y: jm.restart(net, p, t, Y[:3]), "Y has 3 labels|Y has shape"),
        (lambda net, p, t, X, Y: jm.restart(net, p, random_trace()), "trace is a mapped trace, expected one of back"),
        (lambda net, p, t, X, Y: jm.restart(net, p, random_trace(constants=False)),
         r"trace is a trace of the widths \(3, 4\), expected one of backprop with MLP"),
    ],
)  # fmt: skip
def test_what_is_refused(change, match):
    params, X, Y, _, _, _ = DEEP.make()
    trace = jm.backprop(DEEP.net, params, X, Y)
    with pytest.raises(ValueError, match=match):
        change(DEEP.net, params, trace, X, Y)
