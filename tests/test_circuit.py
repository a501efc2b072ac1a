"""Circuits: the notes' examples, every gate, and random compositions of gates against `jax.grad`."""

import functools
import operator

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from problems import TABLE, tree_error

import jaxmlp as jm
from jaxmlp.circuit_gates import GATES


@pytest.fixture(autouse=True)
def double(x64):
    pass


def row_of(circuit, gate):
    (row,) = (row for row in circuit.gates if row.gate == gate)
    return row


def test_the_notes_example():
    found = jm.circuit(lambda x, y, z: (x + y) * z, -2, 5, -4)
    assert (found.value, *found.gradients) == (-12, -4, -4, 3)
    table = str(found).splitlines()
    assert table[0].split("  ") == ["wire", "gate", "inputs", "value", "local gradients", "upstream gradient"]
    assert [line.split() for line in table[1:]] == [
        ["x", "-2", "-4"],
        ["y", "5", "-4"],
        ["z", "-4", "3"],
        ["q", "add", "x,", "y", "3", "1,", "1", "-4"],
        ["f", "mul", "q,", "z", "-12", "-4,", "3", "1"],
    ]


def test_the_sigmoid_circuit_gate_by_gate():
    """The values that Karpathy's lecture on circuits prints, to its two digits."""

    def sigmoid(w0, x0, w1, x1, w2):
        return 1 / (1 + jnp.exp(-(w0 * x0 + w1 * x1 + w2)))

    found = jm.circuit(sigmoid, 2.0, -1.0, -3.0, -2.0, -3.0)
    np.testing.assert_allclose(found.gradients, [-0.2, 0.39, -0.39, -0.59, 0.2], atol=0.005)
    assert [row.gate for row in found.gates] == ["mul", "mul", "add", "add", "neg", "exp", "add", "div"]
    assert found.gates[-1].wire == "sigmoid" and found.gates[-1].inputs == ("1", "q7")
    whole = jm.circuit(lambda s: jax.nn.sigmoid(s), 1.0)  # the same in one gate
    np.testing.assert_allclose(whole.gradients[0], row_of(found, "neg").upstream * -1, rtol=1e-15)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-3, 3))
def test_add_distributes_multiply_swaps_max_and_min_route(x, y, upstream):
    """What each gate hands back, whatever comes from upstream."""
    with jax.enable_x64(True):
        through = lambda gate: [float(g) for g in jm.circuit(lambda x, y: upstream * gate(x, y), x, y).gradients]
        assert through(operator.add) == [upstream, upstream]
        assert through(operator.mul) == [upstream * y, upstream * x]
        first = 0.5 if x == y else float(x > y)
        assert through(jnp.maximum) == [upstream * first, upstream * (1 - first)]
        assert through(jnp.minimum) == [upstream * (1 - first), upstream * first]


def test_a_value_used_twice_sums_its_upstream_gradients():
    found = jm.circuit(lambda x: x * x + jnp.sin(x) * x, 3.0)
    assert float(found.gradients[0]) == pytest.approx(6 + np.sin(3.0) + 3 * np.cos(3.0), rel=1e-15)
    diamond = jm.circuit(lambda x: (lambda q: q * q)(2 * x), 3.0)
    assert diamond.gates[0].upstream == 12 and diamond.gradients == (24,)


V, W = np.asarray([0.7, -1.3, 0.4]), np.asarray([[0.2, -0.5, 1.1], [0.9, 0.3, -0.8]])
EACH = {
    "add": lambda v: jnp.sum(v + v[0]),
    "sub": lambda v: jnp.sum(v[0] - v),
    "mul": lambda v: jnp.sum(v * v[1]),
    "div": lambda v: jnp.sum(v[1] / (v + 3)),
    "max": lambda v: jnp.sum(jnp.maximum(v, v[2])),
    "min": lambda v: jnp.sum(jnp.minimum(v, v[2])),
    "pow": lambda v: jnp.sum((v + 2) ** v + (v + 2) ** 2.5),
    "neg": lambda v: jnp.sum(-v * v),
    "integer_pow": lambda v: jnp.sum(v**3 + v**-2 + jax.lax.integer_pow(v, 0)),
    "square": lambda v: jnp.sum(jnp.square(v)),
    "sqrt": lambda v: jnp.sum(jnp.sqrt(v + 2)),
    "rsqrt": lambda v: jnp.sum(jax.lax.rsqrt(v + 2)),
    "abs": lambda v: jnp.sum(jnp.abs(v)),
    "exp": lambda v: jnp.sum(jnp.exp(v)),
    "expm1": lambda v: jnp.sum(jnp.expm1(v)),
    "log": lambda v: jnp.sum(jnp.log(v + 2)),
    "log1p": lambda v: jnp.sum(jnp.log1p(v + 2)),
    "sin": lambda v: jnp.sum(jnp.sin(v)),
    "cos": lambda v: jnp.sum(jnp.cos(v)),
    "tan": lambda v: jnp.sum(jnp.tan(v)),
    "tanh": lambda v: jnp.sum(jnp.tanh(v)),
    "logistic": lambda v: jnp.sum(jax.nn.sigmoid(v)),
    "relu": lambda v: jnp.sum(jax.nn.relu(v * v[1]) + jax.nn.relu(v - v)),  # at its kink too
    "sign": lambda v: jnp.sum(jnp.sign(v) * v),
    "floor": lambda v: jnp.sum(jnp.floor(v) * v),
    "ceil": lambda v: jnp.sum(jnp.ceil(v) * v),
    "round": lambda v: jnp.sum(jnp.round(v) * v),
    "stop_gradient": lambda v: jnp.sum(jax.lax.stop_gradient(v) * v),
    "select_n": lambda v: jnp.sum(jnp.where(v > 0, v**2, jnp.sin(v))),
    "dot_general": lambda v: jnp.sum(jnp.asarray(W) @ v) * (v @ v) + jnp.sum(products(v) ** 2),
    "reduce_sum": lambda v: jnp.sum(jnp.sum(v * jnp.asarray(W), axis=1) ** 2),
    "reduce_max": lambda v: jnp.sum(jnp.max(jnp.asarray(W) * v, axis=1) ** 2) + jnp.max(v - v + v[0]),
    "reduce_min": lambda v: jnp.sum(jnp.min(jnp.asarray(W) * v, axis=1) ** 2) + jnp.min(v - v + v[0]),
    "copy": lambda v: jnp.sum(jax.lax.copy_p.bind(v) ** 2),
    "convert_element_type": lambda v: jnp.sum(v.astype(jnp.float32)).astype(jnp.float64) * (v > 0).astype(v.dtype)[0],
    "reshape": lambda v: jnp.sum((v.reshape(1, 3) * jnp.asarray(W)) ** 2),
    "squeeze": lambda v: v[1] ** 2,
    "transpose": lambda v: jnp.sum((v[:, None, None] * jnp.arange(8.0).reshape(1, 2, 4)).transpose(1, 2, 0)[0] ** 2),
    "broadcast_in_dim": lambda v: jnp.sum(jnp.broadcast_to(v[:, None], (4, 3, 2)) * jnp.arange(2.0)),
    "slice": lambda v: jnp.sum(v[::2] ** 2),
    "concatenate": lambda v: jnp.sum(jnp.concatenate([v, v[:2] ** 2, v]) ** 2),
    "stack": lambda v: jnp.sum(jnp.stack([v, v**2], axis=1)[1:] ** 2),
}


def products(v):
    """Of arrays `(b, i, j)` and `(k, j, b)` of different lengths."""
    A = v[:, None, None] * jnp.arange(12.0).reshape(3, 1, 4) + jnp.arange(2.0)[None, :, None]
    return jnp.einsum("bij,kjb->bik", A, v[None, None] * jnp.arange(20.0).reshape(5, 4, 1))


def test_each_gate_has_a_case():
    assert EACH.keys() == GATES.keys()


@functools.cache
def by_autodiff():
    """All of their gradients in one compilation."""
    return jax.jit(lambda v: {name: jax.grad(f)(v) for name, f in EACH.items()})(V)


@pytest.mark.parametrize("name", GATES)
def test_each_gate_equals_autodiff(name):
    with jax.numpy_rank_promotion("allow"):
        found, expected = jm.circuit(EACH[name], V), by_autodiff()[name]
    gates = {row.gate for row in found.gates}
    assert name in gates or (name == "stack" and "concatenate" in gates)  # JAX 0.10.0 stacks by concatenation
    assert tree_error(found.gradients[0], expected) <= (1e-12 if name != "convert_element_type" else 1e-6)
    for row in found.rows:
        assert row.upstream is None or row.upstream.shape == row.value.shape


AT_KINKS = {
    "abs": (jnp.abs, 0.0),
    "sign": (jnp.sign, 0.0),
    "max": (lambda x: jnp.maximum(x, 1.0), 1.0),
    "min of itself": (lambda x: jnp.minimum(x, x), 1.0),
    "relu": (jax.nn.relu, 0.0),
    "leaky relu": (jax.nn.leaky_relu, 0.0),
    "elu": (jax.nn.elu, 0.0),
    "clip": (lambda x: jnp.clip(x, 0.0, 1.0), 0.0),
    "sqrt": (jnp.sqrt, 0.0),
    "log": (jnp.log, 0.0),
    "1/x": (lambda x: 1 / x, 0.0),
    "x/x": (lambda x: x / x, 0.0),
    "power 0": (lambda x: x**0, 0.0),
    "power -1": (lambda x: x**-1, 0.0),
    "power 1/2": (lambda x: jnp.power(x, 0.5), 0.0),
    "0 to a power": (lambda x: jnp.power(0.0, x), 2.0),
    "norm": (lambda x: jnp.sqrt(x**2), 0.0),
    "root of abs": (lambda x: jnp.sqrt(jnp.abs(x)), 0.0),
    "where NaN": (lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0), -1.0),
    "where": (lambda x: jnp.sqrt(jnp.where(x > 0, x, 0.0)), -1.0),
    "root of relu": (lambda x: jnp.sqrt(jax.nn.relu(x)), -1.0),
    "root of max": (lambda x: jnp.sqrt(jnp.maximum(x, 0.0)), -1.0),
    "root of floor": (lambda x: jnp.sqrt(jnp.floor(x)), 0.5),
    "root of ceil": (lambda x: jnp.sqrt(jnp.ceil(x)), -0.5),
    "root of round": (lambda x: jnp.sqrt(jnp.round(x)), 0.2),
    "root of sign": (lambda x: jnp.sqrt(jnp.sign(x)), 0.0),
    "log of a constant": (lambda x: jnp.log(jax.lax.stop_gradient(x)) + x, 0.0),
    "0 times infinity": (lambda x: 0 * jnp.log(x), 0.0),
    "softplus far away": (jax.nn.softplus, 1e4),
    "sinc": (jnp.sinc, 0.0),
    "silu": (jax.nn.silu, -1e4),
}


def test_kinks_and_infinite_slopes_equal_autodiff():
    expected = jax.jit(lambda xs: {name: jax.grad(AT_KINKS[name][0])(x) for name, x in xs.items()})(
        {name: x for name, (_, x) in AT_KINKS.items()}
    )
    for name, (f, x) in AT_KINKS.items():
        np.testing.assert_allclose(jm.circuit(f, x).gradients[0], expected[name], rtol=1e-12, err_msg=name)
    assert jm.circuit(lambda x, y: x**y, 0.0, 0.0).gradients == (0, 0)  # as the docstring says; autodiff's is NaN


@jax.custom_jvp
def straight_through(x):
    return jnp.round(x)


straight_through.defjvp(lambda x, dx: (jnp.round(x[0]), dx[0]))


@jax.custom_vjp
def squared(x):
    return x * x


squared.defvjp(lambda x: (x * x, x), lambda x, g: (g * 2 * x,))


@jax.custom_vjp
def clipped_back(x):
    return x * x


clipped_back.defvjp(lambda x: (x * x, x), lambda x, g: (jnp.clip(g * 2 * x, -5, 5),))


@jax.custom_jvp
def two_results(x, y):
    return x * y, x + y


two_results.defjvp(lambda x, dx: (two_results(*x), (dx[0] * x[1] + x[0] * dx[1], dx[0] + dx[1])))


def test_functions_with_the_derivative_of_their_gates_are_followed():
    net = jm.MLP((2, 3, 1), "tanh")
    params = jm.init(net, jax.random.key(0))
    for f, x in (
        (lambda x: squared(x) * x, 3.0),
        (lambda x: clipped_back(x), 2.0),
        (lambda x: (lambda a: a[0] * a[1])(two_results(x, 2 * x)), 3.0),
        (lambda x: jax.nn.relu6(x) * x, 2.0),
        (lambda x: straight_through(jnp.asarray(1.2)) * x, 2.0),  # depends on no argument
        (lambda x: jm.as_function(net)(params, x)[0], np.asarray([1.0, 2.0])),
        (lambda p: jm.as_function(net)(p, jnp.ones(2))[0], params),
    ):
        assert tree_error(jm.circuit(f, x).gradients[0], jax.grad(f)(jax.tree.map(jnp.asarray, x))) <= 1e-12


def by_feedback_alignment(x):
    net, rule = jm.MLP((2, 3, 1), "tanh"), jm.rules.feedback_alignment()
    params, state = jm.init(net, jax.random.key(0)), rule.start(net, jax.random.key(1))
    return jm.as_function(net, rule)(params, x, state)[0]


ONE = (jnp.tanh, jnp.exp, jnp.sin, jnp.cos, jax.nn.sigmoid, jax.nn.relu, jax.nn.softplus, jax.nn.elu, jax.nn.gelu,
       jnp.abs, jnp.square, operator.neg, lambda v: v**3, lambda v: 1 / (1 + v**2), lambda v: jnp.log(1 + v**2),
       lambda v: jnp.sqrt(1 + v**2), lambda v: jax.nn.log_softmax(v), lambda v: jnp.where(v > 0, v, 2 * v),
       lambda v: v.reshape(1, 3)[0], lambda v: jnp.concatenate([v[1:], v[:1]]))  # fmt: skip
TWO = (operator.add, operator.sub, operator.mul, jnp.maximum, jnp.minimum, lambda u, v: u / (1 + v**2),
       lambda u, v: jnp.where(u > v, u, v * u), lambda u, v: jnp.dot(u, v) * u,
       lambda u, v: (u[:, None] * v[None, :]) @ v,
       lambda u, v: jnp.stack([u, v]).T @ jnp.stack([v, u])[:, 0])  # fmt: skip


@st.composite
def expressions(draw, of=ONE + TWO):
    """Random straight-line programs: each step takes any values before it, so that many are used more than once."""
    steps = []
    for known in range(2, 2 + draw(st.integers(1, 8))):
        gate = draw(st.sampled_from(of))
        inputs = draw(st.lists(st.integers(0, known - 1), min_size=(n := 1 + (gate in TWO)), max_size=n))
        steps.append((gate, inputs))

    def function(x, y):
        values = [x, y]
        for gate, inputs in steps:
            values.append(jnp.tanh(gate(*(values[i] for i in inputs))))  # stays of the size of 1
        return jnp.sum(values[-1]) + jnp.dot(values[-1], values[-2])

    return function


@given(expressions(), st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_random_compositions_equal_autodiff(function, numbers):
    with jax.enable_x64(True):
        x, y = jnp.asarray(numbers[:3]), jnp.asarray(numbers[3:])
        found = jm.circuit(function, x, y)
        value, expected = jax.value_and_grad(function, (0, 1))(x, y)
        assert tree_error(found.value, value) <= 1e-12
        assert tree_error(found.gradients, expected) <= 1e-12


def test_the_cost_of_a_network_is_a_circuit_too():
    problem = TABLE[7]  # 3-4-1-4-3: tanh, relu, sigmoid, softmax with cross-entropy, weighted examples
    params, X, Y, _, weights, _ = problem.make()
    cost = lambda params: jm.cost(problem.net, params, X, Y, weights=weights)
    grads = jm.value_and_grad(problem.net, params, X, Y, weights=weights)[1]
    assert tree_error(jm.circuit(cost, params).gradients[0], grads) <= 1e-12


def test_names_follow_the_arguments_and_what_leads_nowhere_is_left_out():
    def loss(layers, *q):
        jnp.sin(q[0])
        return jnp.tanh(layers["W"][0] * q[0] + q[1])

    found = jm.circuit(loss, {"W": [jnp.asarray(2.0)]}, 1, 0.5)
    assert [row.wire for row in found.rows] == ["layers['W'][0]", "q0", "q1", "q_1", "q_2", "loss"]
    assert found.gradients[0].keys() == {"W"} and [row.gate for row in found.gates] == ["mul", "add", "tanh"]


def test_functions_without_gates():
    assert jm.circuit(lambda x, y: y, 1.0, 2.0).gradients == (0, 1)
    assert jm.circuit(lambda x: jnp.asarray(3.0), 1.0).gradients == (0,)
    assert jm.circuit(lambda x: (x > 0).astype(x.dtype), 1.0).gradients == (0,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_is_kept(dtype):
    v, f = jnp.asarray(V, dtype), lambda v: jnp.sum(jnp.exp(v) * 2 / v) + jnp.dot(v, v)
    found = jm.circuit(f, v)
    assert found.value.dtype == found.gradients[0].dtype == dtype
    assert all(row.upstream.dtype == row.value.dtype for row in found.rows)
    assert tree_error(found.gradients[0], jax.grad(f)(v)) <= 10 * jnp.finfo(dtype).eps


def test_a_circuit_shows_itself_in_one_line():
    found = jm.circuit(lambda x, y: jnp.tanh(x * y) + x, 1.0, 2.0)
    assert repr(found) == "Circuit(value=1.964, 3 gates, gradients x=1.141, y=0.07065)"


def test_what_depends_on_no_argument_is_a_constant():
    noise = lambda: jax.random.normal(jax.random.key(0), (), jnp.float64)
    found = jm.circuit(lambda x: x * noise(), 2.0)
    assert len(found.gates) == 1 and found.gradients[0] == noise()


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (lambda v: jnp.sum(jnp.cumsum(v)), (V,), "function uses the gate 'cumsum', expected gates among add, sub"),
        (lambda v: 2 * v, (V,), r"function returns float64 of shape \(3,\), expected one floating-point number"),
        (lambda v: (v[0], v[1]), (V,), "function returns a tuple, expected one floating-point number"),
        (lambda v: jnp.argmax(v), (V,), "function returns int"),
        (lambda x: x.astype(complex).real, (0.5,), "complex numbers by the gate 'convert_element_type'"),
        (lambda x: jnp.abs(jax.lax.complex(x, x)), (0.5,), "complex numbers by the gate 'complex'"),
        (lambda v: jnp.abs(jnp.fft.rfft(v))[1], (V,), "complex numbers by the gate 'fft'"),
        (lambda x: straight_through(x) * x, (1.3,), "function calls 'straight_through', which has a derivative"),
        (lambda x: clipped_back(x), (3.0,), "function calls 'clipped_back', which has a derivative of its own"),
        (lambda x: jax.nn.relu6(x), (6.0,), "function calls 'relu6', which has a derivative of its own"),
        (by_feedback_alignment, (np.asarray([1.0, 2.0]),), "which has a derivative of its own"),
        (lambda x, y: x, (1.0,), r"arguments are 1 values, expected \(x, y\): missing"),
        (lambda x: x, (np.nan,), "x holds nan"),
        (lambda x: x, (1j,), "x has dtype complex128, expected an array of numbers"),
        (lambda x: x, ("1",), "x has dtype <U1"),
        (lambda *x: 1.0, (), "arguments are empty"),
        (3, (1.0,), "function is 3, expected a function"),
    ],
)
def test_what_is_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        jm.circuit(function, *arguments)


def test_known_values_are_asked_for_under_a_trace():
    with pytest.raises(ValueError, match="x is traced"):
        jax.jit(lambda x: jm.circuit(lambda x: x, x).value)(1.0)
