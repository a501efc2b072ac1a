"""The benchmark: not its times, but that all contestants do the same work, and what it makes of their times."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import benchmark, datasets, xor
from experiments._benchmark import (
    accelerator,
    epochs,
    expected,
    limit,
    methods,
    ours,
    populations,
    problem,
    record,
    second_order,
    startup,
    timing,
)

PICTURES = datasets.load("mnist")
SIZES = (784, 8, 10)


def made(contestant, given):
    """A contestant after one epoch; a skipped test where its library is not installed."""
    try:
        epoch = epochs.maker(contestant)(given) if contestant != "ours" else epochs.Epoch(given)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    if contestant != "torch.compile":
        epoch()
    return epoch


def flat(layers):
    return np.concatenate([np.ravel(array) for layer in layers for array in layer]).astype(np.float64)


def obvious_gradient(given):
    """Of the mean loss of all examples, in float64: written out here, by finite sums only."""
    W1, b1, W2, b2 = (array.astype(np.float64) for layer in given.weights for array in layer)
    a = np.maximum(given.X @ W1.T + b1, 0)
    z = a @ W2.T + b2
    delta2 = (np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(10)[given.Y]) / len(given.Y)
    delta1 = delta2 @ W2 * (a > 0)
    return flat([(delta1.T @ given.X, delta1.sum(0)), (delta2.T @ a, delta2.sum(0))])


CONTESTANTS = ["ours", *(peer for peer in epochs.PEERS if peer != "torch.compile")]  # the same loop, long to compile


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_every_contestant_descends_along_every_example_once(contestant):
    """With a small rate an epoch of 4 steps moves the weights by 4 steps of the whole set's gradient."""
    given = problem.make_problem(SIZES, 16, PICTURES, rate=2e-4, steps=4)
    start, gradient = flat(given.weights), obvious_gradient(given)
    epoch = made(contestant, given)
    moved = flat(epoch.weights()) - start
    expected = -4 * given.rate * gradient
    assert np.linalg.norm(moved - expected) <= 0.02 * np.linalg.norm(expected)
    before = flat(epoch.weights())
    epoch()
    again = flat(epoch.weights()) - before
    assert np.linalg.norm(again - expected) <= 0.04 * np.linalg.norm(expected)  # the next epoch goes on from there
    assert np.array_equal(flat(given.weights), start)  # which the next contestant is given


def test_an_epoch_takes_the_gradient_it_is_given_and_gives_it_back():
    """A gradient of 0 leaves the weights; the next epoch has its own again, after an error too."""
    given = problem.make_problem(SIZES, 16, PICTURES, rate=0.1, steps=2)
    by_hand = ours.step.by_hand

    def standstill(plan, params, rule_state, examples, key):
        trace, grads = by_hand(plan, params, rule_state, examples, key)
        return trace, jax.tree.map(jax.numpy.zeros_like, grads)

    still, moving = ours.Epoch(given, standstill), ours.Epoch(given)
    for epoch in (still, moving):
        epoch()
    assert np.array_equal(flat(still.weights()), flat(given.weights))
    assert not np.array_equal(flat(moving.weights()), flat(given.weights))
    with pytest.raises(RuntimeError), ours.gradient_by(standstill):
        assert ours.step.by_hand is standstill
        fails()
    assert ours.step.by_hand is by_hand


def test_the_limit_keeps_every_product_inside_its_loop():
    given = problem.make_problem((784, 24, 16, 10), 32, PICTURES, 0.01, steps=3)
    products = limit.Products(given)
    found = re.finditer(r"^(?:ENTRY )?(%[\w.\-]+) \(.*?^}", products.run.as_text(), re.MULTILINE | re.DOTALL)
    parts = {part[1]: part[0] for part in found}
    called = lambda name: [parts[at] for at in re.findall(r"(?:calls|to_apply)=(%[\w.\-]+)", parts[name])]
    shapes = lambda part: re.findall(r"f32\[([\d,]+)\]\S* dot\(", part)
    (body,) = re.findall(r"body=(%[\w.\-]+)", "".join(parts.values()))
    in_loop = sorted(shape for part in [parts[body], *called(body)] for shape in shapes(part))
    forward, back, gradient = ["32,24", "32,16", "32,10"], ["32,16", "32,24"], ["24,784", "16,24", "10,16"]
    assert in_loop == sorted(forward + back + gradient)  # none is taken transposed, or merged with another
    assert in_loop == sorted(shape for part in parts.values() for shape in shapes(part))  # or done once for all steps
    X, Ws = products.inputs
    grads = [np.asarray(grad) for grad in products.run(X, Ws)]
    a = [X, X @ Ws[0].T, X @ Ws[0].T @ Ws[1].T]
    delta = a[2] @ Ws[2].T
    np.testing.assert_allclose(grads[2], delta.T @ a[2], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(grads[0], (delta @ Ws[2] @ Ws[1]).T @ X, rtol=1e-4, atol=1e-3)


def test_the_bytes_of_a_step():
    """784-2-10, batch 3, counted on paper: 1,568 + 20 weights, 12 biases."""
    given = problem.make_problem((784, 2, 10), 3, PICTURES, 0.01, steps=2)
    assert limit.step_bytes(given) == 4 * (3 * (1568 + 20 + 12) + 20 + 3 * (2 * 784 + 4 * 12))
    assert limit.bytes_seconds(given) == 2 * limit.step_bytes(given) / limit.bandwidth(given) > 0
    np.testing.assert_array_equal(limit.limit_seconds(np.array([0.0, 9.0]), given), [limit.bytes_seconds(given), 9.0])


@pytest.mark.parametrize("batch_size", [1, 10, 32, 128, 512, 4096])
def test_an_epoch_is_of_equal_batches_that_there_are_pictures_for(batch_size):
    for network in benchmark.Settings().networks:
        steps = problem.steps_for(problem.widths(network), batch_size)
        assert 2 <= steps <= 60_000 // batch_size


def test_turns_go_round_and_back_and_short_calls_are_repeated(monkeypatch):
    monkeypatch.setattr(timing.gc, "collect", int)
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "TURN", 0.0)
    order = []
    seconds = timing.time_in_turns({name: lambda name=name: order.append(name) for name in "abc"}, 3)
    assert "".join(order) == "cba" + "abc" + "cba" + "abc"
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    monkeypatch.setattr(timing, "TURN", 1e-3)
    order.clear()
    timing.time_in_turns({"a": lambda: order.append("a")}, 1)
    assert len(order) > 2


def fails():
    raise RuntimeError("no compiler\nand a long story")


def missing():
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_a_peer_that_cannot_take_part_is_told_of_and_ours_must():
    calls, ready, absent = timing.make_contestants(
        {"ours": lambda: int, "torch": missing, "torch.compile": lambda: fails}
    )
    assert list(calls) == list(ready) == ["ours"]
    assert absent == {"torch": "torch is not installed: the extra benchmark brings it",
                      "torch.compile": "RuntimeError: no compiler"}  # fmt: skip
    with pytest.raises(RuntimeError, match="no compiler"):
        timing.make_contestants({"ours": lambda: fails})


def test_a_cell_alone_and_the_same_cell_compared(out, monkeypatch):
    monkeypatch.setattr(problem, "EPOCH_SECONDS", 1e-3)
    monkeypatch.setattr(record, "MEMORY", 1 << 20)
    monkeypatch.setitem(epochs.PEERS, "flax", ("nowhere", "flax"))
    chosen = benchmark.Settings(networks=("784-8-10",), batch_sizes=(64,), peers=("numpy", "flax"),
                                sections=("epochs",), rounds=3)  # fmt: skip
    to = out("benchmark", chosen)
    numbers = benchmark.run(chosen, to)
    path = to.folder / "benchmark.json"
    kept = json.loads(path.read_text())
    assert kept["machine"]["cores"] >= 1 and kept["machine"]["device"] == jax.devices()[0].device_kind
    assert kept["versions"]["jax"] == jax.__version__
    assert kept["settings"]["batch_sizes"] == [64]
    (cell,) = kept["cells"]
    assert cell["cell"] == "784-8-10, batch 64" and list(cell["contestants"]) == ["ours", "products alone", "numpy"]
    numpy = cell["contestants"]["numpy"]
    assert numpy["ratio"] == numbers["numpy / ours"] > 0
    assert numpy["quartiles"][0] <= numpy["median"] <= numpy["quartiles"][1]
    assert cell["absent"] == {"flax": "experiments._benchmark.nowhere is not installed: the extra benchmark brings it"}
    assert numbers["ours / limit"] == cell["limit_ratio"]["ours"]
    report = (to.folder / "report.txt").read_text()
    assert "take turns" in report and "64, numpy" in report and "64, flax: experiments" in report
    assert (to.folder / "epochs.png").exists()
    again = benchmark.Settings(compare=(str(path), str(path)))
    assert benchmark.run(again, out("benchmark", again)) == {"worst_change": 1.0}


def test_a_step_by_kfac_stands_beside_sgd_and_beside_the_peers_that_run(out, monkeypatch):
    """One peer is missing; the other is NumPy's SGD in its place. The record can be compared."""
    monkeypatch.setattr(record, "MEMORY", 1 << 20)
    monkeypatch.setitem(second_order.PEERS, "kfac-jax", ("nowhere", "kfac_jax"))
    monkeypatch.setitem(second_order.PEERS, "curvlinops", ("plain_peers", "NumPy"))
    chosen = benchmark.Settings(sections=("second_order",), quick=True)
    to = out("benchmark", chosen)
    assert benchmark.run(chosen, to) == {}
    path = to.folder / "benchmark.json"
    (cell,) = json.loads(path.read_text())["cells"]
    assert (cell["section"], cell["cell"], cell["steps"]) == ("second_order", "784-64-10, batch 512", 10)
    assert {name: each["own"] for name, each in cell["contestants"].items()} == {
        "SGD": True, "K-FAC": True, "curvlinops": False}  # fmt: skip
    assert cell["contestants"]["K-FAC"]["ratio"] > cell["contestants"]["SGD"]["ratio"] == 1.0
    table = (to.folder / "report.txt").read_text().partition("second order: a step at")[2]
    lines = [line for line in table.splitlines() if line.startswith(("SGD", "K-FAC", "kfac-jax", "curvlinops"))]
    assert [line.split("  ")[0] for line in lines] == [
        "SGD", "K-FAC", "curvlinops",
        "kfac-jax: experiments._benchmark.nowhere is not installed: the extra benchmark brings it"]  # fmt: skip
    again = benchmark.Settings(compare=(str(path), str(path)))
    assert benchmark.run(again, out("benchmark", again)) == {"worst_change": 1.0}


@pytest.fixture
def promotion():
    """The promotion of ranks and dtypes that the peers rely on."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("promotion")
@pytest.mark.filterwarnings("ignore")  # the peers use what JAX and PyTorch deprecate
@pytest.mark.parametrize("peer", second_order.PEERS)
def test_every_kfac_makes_the_same_steps(peer):
    """Up to the batches and to the labels that they draw: ten steps as long, in nearly the same direction."""
    given = problem.make_problem((784, 16, 10), second_order.BATCH_SIZE, PICTURES, second_order.RATE, steps=10)
    own = second_order.optimizers(given.net, quick=True)
    makers = second_order.contestants(given, own)
    try:
        theirs = makers[peer]()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    epochs = [theirs, makers["K-FAC"]()]
    start = flat(given.weights)
    for _ in range(2):
        for epoch in epochs:
            epoch()
        moved = [flat(epoch.weights()) - start for epoch in epochs]
        lengths = [np.linalg.norm(each) for each in moved]
        assert lengths[0] == pytest.approx(lengths[1], rel=0.05)
        assert moved[0] @ moved[1] >= 0.85 * lengths[0] * lengths[1]


def of_values(*values):
    return lambda: methods.Contestant(lambda: [np.array(values)])


def test_a_peer_with_other_values_than_ours_is_told_of_and_not_timed(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "TURN", 0.0)
    peers = {"alike": of_values(3.0, 4.001), "other": of_values(3.0, 5.0), "nan": of_values(3.0, np.nan)}
    cell = methods.measure(methods.Task("task", of_values(3.0, 4.0), {**peers, "torch": missing}), 2)
    assert list(cell.seconds) == ["ours", "alike"]
    assert cell.absent == {"torch": "torch is not installed: the extra benchmark brings it",
                           "other": "its values are 0.2 from ours, expected 0.001",
                           "nan": "its values are nan from ours, expected 0.001"}  # fmt: skip
    assert cell.facts["apart"]["alike"] == pytest.approx(2e-4)
    rows = methods.rows(cell)
    assert [row["apart"] for row in rows] == ["0.0002", "", "", ""] and rows[2]["task"].startswith("task, other: its")


@pytest.mark.usefixtures("promotion")
@pytest.mark.filterwarnings("ignore")  # the peers use what JAX and PyTorch deprecate
@pytest.mark.parametrize("tasks", [methods.of_batches, methods.of_posteriors, methods.of_influence, methods.of_kernels])
def test_every_peer_of_a_newer_method_has_our_values(tasks, monkeypatch):
    """Where its library is installed; `jax.jacrev` alone stands for those that are not."""
    if tasks is not methods.of_kernels:
        pytest.importorskip({methods.of_posteriors: "laplace", methods.of_influence: "kronfluence"}.get(tasks, "torch"))
    monkeypatch.setattr(methods, "time_in_turns", lambda calls, rounds: {name: np.ones(1) for name in calls})
    for task in tasks(methods.QUICK, PICTURES):
        cell = methods.measure(task, 1)
        assert not any("its values" in why for why in cell.absent.values()), cell.absent
        assert len(cell.seconds) > 1 or cell.absent


def test_the_table_of_a_chip_runs_on_a_cpu_at_tiny_sizes(out, monkeypatch):
    """Two of its steps, the peers that are installed elsewhere left out; the other steps are not in time."""
    monkeypatch.setattr(record, "MEMORY", 1 << 20)
    monkeypatch.setattr(accelerator.importlib, "import_module", lambda name: missing())
    seconds = dict.fromkeys(accelerator.TINY.seconds, 9e9) | {"clipping": 1.0, "dropout": 1.0}
    monkeypatch.setattr(accelerator, "TINY", dataclasses.replace(accelerator.TINY, seconds=seconds))
    chosen = benchmark.Settings(accelerator=True, quick=True, rounds=1)
    to = out("benchmark", chosen)
    benchmark.run(chosen, to)
    cells = json.loads((to.folder / "benchmark.json").read_text())["cells"]
    assert [cell["cell"] for cell in cells] == [
        "clipping, 784-16-8-10, batch 64", "dropout, 784-8-8-10, batch 16, float32"]  # fmt: skip
    assert list(cells[0]["program_bytes"]) == ["mean gradient", "clipped gradient", "jax.grad"]
    assert list(cells[1]["contestants"]) == ["ours", "jax.grad"] and list(cells[1]["absent"]) == ["flax", "torch"]
    report = (to.folder / "report.txt").read_text()
    assert "JAX: " in report and "PyTorch: is not installed" in report
    assert "second order, 784-8-10, batch 16: not measured, as it would end after 8 minutes" in report


def test_a_step_that_fails_is_a_line_and_the_next_one_starts(out, monkeypatch):
    def breaks():
        raise TypeError("too wide\nand a long story")

    cell = timing.Cell("accelerator", "c", {"ours": np.ones(1)})
    made = [accelerator.Step("epochs", "a", breaks, list), accelerator.Step("epochs", "b", lambda: cell, lambda _: []),
            accelerator.Step("epochs", "c", lambda: cell, accelerator.contestant_rows)]  # fmt: skip
    monkeypatch.setattr(accelerator, "steps", lambda *_: made)
    monkeypatch.setattr(accelerator.importlib, "import_module", lambda name: fails())
    to = out("benchmark", benchmark.Settings())
    assert list(accelerator.measure(PICTURES, 1, True, to)) == [cell, cell]
    report = (to.folder / "report.txt").read_text()
    assert "PyTorch: RuntimeError: no compiler;" in report and "epochs, a: TypeError: too wide\n" in report
    assert "epochs, b: IndexError: " in report and "1.00" in report


def test_the_table_of_a_chip_needs_one(out):
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match="accelerator is set, but JAX finds only a CPU; --quick runs it there"):
            next(accelerator.measure(PICTURES, 1, False, None))


def test_a_slow_machine_is_given_fewer_steps(monkeypatch):
    """Steps that take twice as long as expected: of 10 s the next one counts as 20."""
    now = [0.0]
    monkeypatch.setattr(accelerator.time, "perf_counter", lambda: now[0])
    budget = accelerator.Budget(45.0)
    for seconds, allowed in ((20.0, True), (20.0, True), (20.0, False)):
        assert budget.allows(10.0) == allowed
        now[0] += seconds if allowed else 0.0
    assert budget.allows(2.0)


def timed(network, batch_size, over_limit, **ratios):
    """A cell in which ours takes 1 s and each peer as many as are given."""
    seconds = {name: np.full(3, ratio) for name, ratio in {"ours": 1.0, **ratios}.items()}
    facts = {"network": network, "batch_size": batch_size, "limit_ratio": {"ours": over_limit}}
    return timing.Cell("epochs", f"{network}, batch {batch_size}", seconds, facts=facts)


def test_what_a_cell_falls_short_of_is_listed_beside_what_the_limit_allows():
    """PyTorch is expected at 2 up to batch 128 alone, and the limit from there on, nearer for wide networks."""
    small = timed("784-64-10", 32, 1.4, torch=1.9, flax=0.99, numpy=1.0)
    large = timed("784-64-10", 512, 1.3, torch=1.9, **{"scikit-learn": 1.8, "jax.grad": 0.97})
    wide = timed("784-1024-10", 512, 1.3, **{"scikit-learn": 2.5})
    rows = [tuple(row.values()) for row in expected.shortfalls([small, large, wide])]
    assert rows == [
        ("784-64-10, batch 32", "flax / ours", "0.99", "at least 1", "1.39"),
        ("784-64-10, batch 32", "torch / ours", "1.90", "at least 2", "2.66"),
        ("784-64-10, batch 512", "scikit-learn / ours", "1.80", "at least 2.5", "2.34, short too"),
        ("784-1024-10, batch 512", "ours / limit", "1.30", "at most 1.15", "1.00"),
    ]


@pytest.mark.parametrize("wrong, message", [
    ({"tolerance": float("inf")}, "compare and tolerance are .*, expected at most two files, and a tolerance above 0"),
    ({"tolerance": float("nan")}, "compare and tolerance are .*, expected at most two files, and a tolerance above 0"),
    ({"peers": ("tensorflow",)}, "peers has 'tensorflow', expected some of bytes, jax.grad, equinox"),
    ({"sections": ("epoch",)}, "sections has 'epoch', expected some of epochs, readouts"),
    ({"networks": ("784-x-10",)}, "networks has '784-x-10', expected widths such as 784-64-10"),
    ({"networks": ("784-64-1",)}, "networks has '784-64-1', expected 784 inputs and 10 outputs"),
    ({"second_order_networks": ("784",)}, "networks has '784', expected widths such as 784-64-10"),
    ({"batch_sizes": (0,)}, r"rounds and batch_sizes are 9 and \(0,\), expected at least 1 round"),
    ({"compare": ("a", "b", "c")}, "compare and tolerance are .*, expected at most two files"),
    ({"networks": ("784-32-10",), "sections": ("readouts",)}, "which leaves nothing to measure; readouts, rules and"),
    ({"sections": ("rules",), "quick": True}, "which leaves nothing to measure"),
])  # fmt: skip
def test_unknown_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        benchmark.Settings(**wrong).resolve()


def test_one_by_one_torch_trains_the_networks_of_the_sweep():
    torch_peers = pytest.importorskip("experiments._benchmark.torch_peers")
    many = populations.xor_sweep(3, 20)()
    for key, member in zip(jax.random.split(jax.random.key(0), 3), range(3), strict=True):
        drawn = populations.jm.init(populations.XOR, key, populations.STARTS)
        trained = torch_peers.xor_one_by_one(xor.X, xor.Y, drawn, populations.RATE, 20)()
        expected = [tuple(layer) for layer in many.member(member).params]
        linear = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in trained[::2]]
        np.testing.assert_allclose(flat(linear), flat(expected), rtol=1e-4, atol=1e-5)
        assert np.abs(flat(linear) - flat(drawn)).max() > 0.01


def test_vmap_of_jax_grad_trains_the_networks_of_the_sweep():
    many = populations.xor_sweep(3, 20)()
    given = populations.XOR, xor.X, xor.Y, 3, len(xor.X), 20, populations.RATE, populations.STARTS
    for swept, mapped in zip(*map(jax.tree.leaves, (many.params, populations.by_vmap_grad(*given)())), strict=True):
        np.testing.assert_allclose(swept, mapped, rtol=1e-4, atol=1e-5)


def test_a_new_process_is_timed_by_parts(monkeypatch):
    monkeypatch.setattr(
        startup, "FIRST_STEP", "import os; print(1, 2, len(os.environ.get('JAX_COMPILATION_CACHE_DIR', '')))"
    )
    seconds, *parts = startup.first_step(None)
    assert 0 < seconds < 60 and parts == [1, 2, 0]
    assert startup.first_step("/four")[3] == 5
    monkeypatch.setattr(startup, "FIRST_STEP", "print(1, 2, 3); raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="failed"):
        startup.first_step(None)
