"""Each experiment's stated expectation, and the settings that it refuses."""

import functools
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pytest import approx

from experiments import __main__ as command
from experiments import (
    activations,
    alignment,
    attribution,
    autoencoder,
    averages,
    batch_size,
    circuits,
    curvature,
    datasets,
    demand,
    embed,
    ensemble,
    flow,
    gradcheck,
    housing,
    initialization,
    levenberg_marquardt,
    mnist,
    normalization,
    parity,
    per_example,
    private,
    recipe,
    regularization,
    results,
    saturation,
    search,
    shapes,
    surrogate,
    uncertainty,
    vanishing,
    vectorization,
    width,
    xor,
)
from experiments.output import NotReached


@dataclass(frozen=True)
class Case:
    """An experiment's run: what it claims, and the numbers, pictures and report that show it.

    An entry of `numbers` is a function of all numbers, or a name, a comparison and a bound (a number, or a function of
    all numbers). Everything runs with `quick=True` unless `settings` have it otherwise.
    """

    experiment: Any
    claim: str
    numbers: tuple[Any, ...]
    pictures: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    report: Callable[[str], bool] | None = None  # whether its report says what it should
    optimized: bool = False  # it runs for longer than it compiles


CASES = {
    "shapes": Case(
        shapes, "the notes' shapes hold",
        (lambda n: len(n) == 6, lambda n: max(n.values()) <= 1e-15),
        ("blocks",),
    ),
    "vectorization": Case(
        vectorization, "loops and vectors give one gradient",
        (("apart", "<=", 1e-14), ("sums", "<=", 1e-12)),
        ("seconds", "calories"),
    ),
    "xor": Case(
        xor, "a hidden layer solves XOR, a perceptron never does",
        (("solved", ">=", 0.99), ("small_solved", "==", 0), ("perceptron_most", "<=", 3)),
        ("decision_boundary", "cost"),
    ),
    "mnist_digits_5_6": Case(
        mnist, "one sigmoid output tells fives from sixes",
        (("accuracy", ">=", 0.98),),
        ("curves", "monitors", "confusion", "weights"),
        {"digits": (5, 6), "keys": 1, "epochs": 3, "quick": False},
    ),
    "demand": Case(
        demand, "hidden units find the hidden factors",
        (("excess", ">=", 0), ("over_regression", "<=", 0.1), ("matched", ">=", 0.9)),
        ("probabilities", "factors"),
    ),
    "housing": Case(
        housing, "a network predicts house prices as well as least squares",
        (("apart", "<=", 10), ("over_guess", "<=", 0.65), ("over_least_squares", ">=", 0.9),
         ("over_least_squares", "<=", 1.1)),
        ("predicted",),
    ),
    "activations": Case(
        activations, "relu fits kinks, tanh a sine",
        (("derivatives", "<=", 1e-14), ("kinks, relu", "<=", lambda n: n["kinks, tanh"] / 10),
         ("sine, tanh", "<=", lambda n: n["sine, relu"] / 3)),
        ("activations", "kinks"),
        {"starts": 4, "steps": 2000, "quick": False},
        optimized=True,
    ),
    "initialization": Case(
        initialization, "equal units stay equal, and the variance decides",
        (("symmetric", "==", 1), ("broken", ">", 0.01), ("cost, zeros", ">", lambda n: 2 * n["cost, lecun"]),
         ("kept", "<=", 2), ("left", ">=", 1000), ("tanh", ">=", 1 / 200), ("tanh", "<=", 1 / 50)),
        ("initialization",),
        {"width": 512},
        optimized=True,
    ),
    "saturation": Case(
        saturation, "large weights saturate and learn slowly",
        (("saturated", ">=", 0.9), ("saturated, first", "<=", 0.01), ("f'", ">=", 10), ("delta", ">=", 10),
         ("moved", ">=", 10), ("within", "<=", 0.1), ("cost", ">=", 3)),
        ("saturation",),
    ),
    "vanishing": Case(
        vanishing, "gradients vanish or explode as the factors say",
        (("apart", "<=", 0.05), ("identity, 1/n", "==", approx(1, abs=0.05)), ("relu, 2/n", "==", approx(1, abs=0.05)),
         ("relu, 1/n", "==", approx(0.5**0.5, abs=0.05)), ("identity, 2/n", "==", approx(2**0.5, abs=0.05)),
         ("sigmoid, 1/n", "<", 0.3), ("tanh, 4/n", ">", 1.1)),
        ("norms",),
    ),
    "gradcheck": Case(
        gradcheck, "the check passes right gradients and catches wrong ones",
        (("right_passed", "==", 1), ("wrong_caught", "==", 1), ("best_step", ">=", 1e-6), ("best_step", "<=", 1e-4)),
        ("error_by_step",),
        {"networks": 2},  # test_random_networks.py has more
    ),
    "regularization": Case(
        regularization, "dropout and shifts narrow the gap, and L1 makes zeros",
        (("penalties", "<=", 1e-12), ("dropout", "==", approx(1, abs=0.25)), ("gap", ">=", 0.08),
         ("gap, dropout", "<=", lambda n: 0.9 * n["gap"]), ("gap, shifts", "<=", lambda n: 0.65 * n["gap"]),
         ("zeros", "<=", 0.03), ("zeros, L1", ">=", 0.3), ("size, L2", "<=", 0.5)),
        ("gap", "weights"),
        optimized=True,
    ),
    "normalization": Case(
        normalization, "normalized inputs need fewer steps",
        (("over raw", "<=", 0.01), ("over centered", "<=", 0.2), ("over divided", "<=", 0.2),
         lambda n: bool(n["same order"]), ("condition", "<", 2)),
        ("contours",),
    ),
    "recipe": Case(
        recipe, "the recipe finds bias, then mismatch, on digits",
        (("biased_first", "==", 1), ("bias", ">", 0.05), ("mismatch", ">", 0.05)),
        ("cameras", "errors"),
        {"steps": 2},
    ),
    "batch_size": Case(
        batch_size, "the full batch and size 1 are the notes' rules, and noise falls as foretold",
        (("full", "<=", 1e-12), ("one", "<=", 1e-12), ("noise, least", ">=", 0.8),
         ("noise, most", ">=", lambda n: n["noise, least"]), ("noise, most", "<=", 1.25),
         ("mini_batch", "<", lambda n: n["full_batch"] / 2)),  # after as many epochs
        ("batch_size",),
        {"sizes": (10,)},
    ),
    "averages": Case(
        averages, "averages equal their closed form, and the optimizers built on them beat plain descent",
        (("closed", "<=", 1e-12), ("optax", "<=", 1e-12), ("uncorrected", "==", approx(0.02)),
         ("corrected", "==", approx(1)), ("smoother", "<=", 0.5), ("momentum over descent", "<", 1),
         ("RMSprop over descent", "<", 1), ("Adam over descent", "<", 1)),
        ("averages", "paths"),
    ),
    "search": Case(
        search, "the winner of a search is at least as good as the default",
        (lambda n: bool(n["passed"]), ("winner, from scratch, dev", ">=", lambda n: n["default, dev"]),
         ("winner, from scratch, test", ">=", lambda n: n["default, test"] - 0.01),
         ("winner, from scratch, dev", "==", lambda n: approx(n["winner, as searched, dev"], abs=0.01))),
        ("scores",),
    ),
    "attribution": Case(
        attribution, "influence foretells what retraining without an example does, by K-FAC better than by TracIn",
        (("kfac, all", ">=", 0.5), ("kfac, all", ">=", lambda n: n["tracin, all"]), ("precision, harm", ">=", 0.25),
         ("precision, own", ">=", 0.5)),
        ("digits", "suspect"),
    ),
    "uncertainty": Case(
        uncertainty, "a posterior is unsure where there are no points, and of pictures that are no digits",
        (("gap over points, full", ">=", 5), ("gap over points, kronecker", ">=", 2),
         ("auroc, Laplace, kronecker, tempered", ">=", lambda n: n["auroc, the network"]),
         ("ece, Laplace, kronecker, tempered", "<=", 0.08)),
        ("curve", "entropies"),
    ),
    "ensemble": Case(
        ensemble, "a mean of networks is better than one, and the greedy choice no worse than the best member",
        (("ratio", "<=", 0.98), ("log loss ratio", "<=", 0.98), ("greedy over best, held out", "<=", 1 + 1e-5),
         ("houses, greedy over best, held out", "<=", 1 + 1e-5), ("information", ">=", 1.5)),
        ("sizes",),
    ),
    "circuits": Case(
        circuits, "circuits equal autodiff and the notes",
        (("difference", "<=", 1e-12), ("value", "==", -12), ("x", "==", -4), ("y", "==", -4), ("z", "==", 3)),
        ("notes", "sigmoid", "routing", "network"),
    ),
    "flow": Case(
        flow, "the flow along paths equals the recursion",
        (lambda n: max(n.values()) <= 1e-12,),
        ("flow",),
        report=lambda text: text.count("w z_3^1 ") == 4,  # paths of the chosen weight
    ),
    "flow_deeper": Case(
        flow, "the flow along paths equals the recursion in a deeper network",
        (lambda n: max(n.values()) <= 1e-12,),
        ("flow",),
        {"sizes": (3, 4, 3, 5), "label": 5},
    ),
    "parity": Case(
        parity, "depth helps to learn parity",
        (("mistakes", "==", 0), ("deepest", ">=", 0.75)),
        ("parity",),
        {"depths": (1, 3), "steps": 2000},
        report=lambda text: "512 units, 1 deep, 0 wrong" in text and "AND gates joined by an OR need" in text,
    ),
    "curvature": Case(
        curvature, "descent diverges at two over the largest eigenvalue",
        (("threshold", "==", approx(1, abs=0.05)),),
        ("eigenvalues",),
        {"eigenvalues": 2},
    ),
    "per_example": Case(
        per_example, "planted labels are found by their gradients",
        (("precision", ">=", 0.65), ("chance", "<", 0.065)),
        ("largest", "found", "norms"),
    ),
    "private": Case(
        private, "noise costs accuracy and buys privacy",
        (("plain", ">=", 0.85), ("noisiest", "<", lambda n: n["plain"] - 0.02), ("epsilon", "<", 1)),
        ("accuracy",),
        {"noise_multipliers": (0.0, 4.0), "epochs": 1, "quick": False},
    ),
    "alignment": Case(
        alignment, "random feedback learns, and aligns",
        (("backpropagation, angle", "<", 1e-3), ("feedback alignment, accuracy", ">=", 0.9),
         ("feedback alignment, angle", "<", 80), ("direct feedback alignment, accuracy", ">=", 0.9),
         ("direct feedback alignment, angle", "<", 80)),
        ("angles",),
    ),
    "surrogate": Case(
        surrogate, "step functions learn by a surrogate",
        (("step, triangle", ">=", 0.9), ("step, backpropagation", "<", 0.85)),
        ("curves", "surrogates"),
        {"hidden": (128, 128)},
    ),
    "embed": Case(
        embed, "a head trains on a convolutional network by its own backward pass",
        (("difference", "<=", 1e-12), ("accuracy", ">=", 0.85)),
        ("cost",),
        optimized=True,
    ),
    "autoencoder": Case(
        autoencoder, "K-FAC needs a tenth of the steps",
        (("steps", "<=", 0.1), ("Adam, error", "<", lambda n: 0.8 * n["Adam, first"])),
        ("curves", "digits"),
    ),
    "levenberg_marquardt": Case(
        levenberg_marquardt, "Levenberg-Marquardt fits a curve that Adam does not, and many starts at once",
        (("sine, Adam, ratio", ">=", 100), ("sine, L-BFGS, ratio", ">=", 1), ("sine, Levenberg-Marquardt", "<=", 1e-7),
         ("faster, processor", ">=", 3), ("apart", "<=", 0.5), ("median loss", "<=", 1e-5)),
        ("losses", "fits", "starts"),
    ),
    "width": Case(
        width, "under mu-P pre-activations and the best rate stay where they are while the network gets wider",
        (("Adam mu-P, slope", "<=", 0.16), ("Adam standard, slope", ">=", 0.5), ("mu-P, moved", "<=", 2),
         ("standard, moved", ">=", 4), ("standard, excess", ">=", 2)),
        ("moves", "rates"),
    ),
    "results": Case(  # the other rows of the literature take longer, and are run by hand
        results, "the literature's rows that take seconds are reached",
        (("784-10 softmax", "<=", 0.076), ("two spirals, 2-64-64-1 tanh", "==", 1)),
        ("results",),
        {"rows": ("784-10 softmax", "spirals"), "seeds": 1, "quick": False},
        optimized=True,
    ),
}  # fmt: skip

COMPARISONS = {"<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge, ">": operator.gt}


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """A set of pictures is unpacked and verified for the first experiment that loads it; none may write into it."""

    @functools.cache
    def load(name, load=datasets.load):
        pictures = load(name)
        for array in pictures[:4]:
            array.flags.writeable = False
        return pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", load)
        yield


def marks(case):
    return [pytest.mark.optimized] if case.optimized else []


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(case)) for name, case in CASES.items()])
def test_experiment(name, out):
    case = CASES[name]
    settings = case.experiment.Settings(**{"quick": True} | case.settings)
    made = out(name, settings)
    numbers = case.experiment.run(settings, made)
    for expected in case.numbers:
        assert holds(numbers, expected), f"{case.claim}: {expected} of {numbers}"
    assert {path.stem for path in made.folder.glob("*.png")} == set(case.pictures)
    if case.report is not None:
        assert case.report((made.folder / "report.txt").read_text())


def holds(numbers, expected):
    """Whether an entry of a case's `numbers` is true."""
    if callable(expected):
        return expected(numbers)
    name, comparison, bound = expected
    return COMPARISONS[comparison](numbers[name], bound(numbers) if callable(bound) else bound)


REFUSED = [
    (activations, {"units": 0}, "units, starts and steps are 0, 20, 4000; expected at least 1 of each"),
    (autoencoder, {"keys": 0}, "keys=0.*, expected at least 1 of each"),
    (averages, {"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\), expected numbers of at least 0 and below 1"),
    (batch_size, {"examples": 100}, "expected at least 513 examples and 1 of each"),
    (attribution, {"tests": 20_000}, "tests is 20000, expected 1 to 9999"),
    (batch_size, {"examples": 70_000}, "examples is 70000, expected 1 to 60000"),
    (batch_size, {"sizes": (10, 11)}, r"sizes is \(10, 11\), expected some of 1, 10, 64, 512"),
    (demand, {"examples": 10}, "examples and starts are 10, 3, expected at least 100 and 1"),
    (ensemble, {"networks": 0}, "networks=0.* has a number below 1, expected at least 1 of each"),
    (flow, {"weight": (5, 1)}, r"weight is \(5, 1\), expected a unit from 1 to 4"),
    (flow, {"label": 0}, "label is 0, expected a class from 1 to 4"),
    (flow, {"sizes": (3, 4)}, r"sizes is \(3, 4\), expected a hidden layer"),
    (housing, {"splits": 0}, "splits is 0, expected at least 1"),
    (initialization, {"depth": 1}, "depth=1.*, expected at least 1 of each, and at least 2 layers"),
    (levenberg_marquardt, {"rates": ()}, r"rates=\(\).*, expected at least 1 of each, a rate and a memory"),
    (mnist, {"digits": (5,)}, r"digits is \(5,\), expected two different classes from 0 to 9"),
    (normalization, {"close": 2.0}, "close and most are 2.0, 1000000, expected 0 to 1 and at least 1"),
    (parity, {"largest": 17}, "largest and bits are 17 and 8, expected 2 to 16 and 2 to 10"),
    (per_example, {"examples": 100_000}, "examples is 100000, expected 1 to 60000"),
    (per_example, {"planted": 1e-5}, "planted is 1e-05, expected a share of 20000 examples that is at least one"),
    (regularization, {"examples": 10}, "no batch above the examples"),
    (regularization, {"examples": 55_000, "held_out": 10_000}, "held_out is 10000, expected 0 to 5000"),
    (regularization, {"held_out": -1}, "held_out is -1, expected 0 to 59000"),
    (results, {"rows": ("LeNet",)}, r"rows has 'LeNet', expected parts of '784-10 softmax'"),
    (results, {"rows": ("spirals", "784-800-10"), "quick": True}, "rows has '784-800-10', expected with quick parts"),
    (results, {"held_out": 60_000}, "expected at least 0, at least 1, and 0 to 59999"),
    (saturation, {"examples": 70_000}, "examples is 70000, expected 1 to 60000"),
    (saturation, {"scales": (1.0,)}, r"scales=\(1.0,\).*, expected at least two scales above 0"),
    (shapes, {"examples": 1}, "examples is 1, expected at least 2 to make a batch"),
    (vanishing, {"width": 1}, "width=1.*, expected .* a width and depth of at least 2"),
    (vectorization, {"examples": ()}, r"features, repeats and examples are 20, 5, \(\); expected at least 1 of each"),
    (width, {"rates": (-6, -6)}, r"rates=\(-6, -6\).*, expected at least 1 of each, two widths and two rates"),
]


IDS = [f"{experiment.__name__.removeprefix('experiments.')}, {', '.join(wrong)}" for experiment, wrong, _ in REFUSED]


@pytest.mark.parametrize(("experiment", "settings", "message"), REFUSED, ids=IDS)
def test_wrong_settings_are_refused(experiment, settings, message, out):
    wrong = experiment.Settings(**settings)
    with pytest.raises(ValueError, match=message):
        experiment.run(wrong, out("refused", wrong))


def test_a_run_of_mnist_reaches_97_percent_and_leaves_its_files(out):
    settings = mnist.Settings(keys=1, epochs=4)
    made = out("mnist", settings)
    assert mnist.run(settings, made)["accuracy"] >= 0.97
    names = {path.name for path in made.folder.iterdir()}
    assert names >= {"settings.json", "report.txt", "history_0.csv", "curves.png", "confusion.png", "weights.png",
                     "monitors.png"}  # fmt: skip
    assert json.loads((made.folder / "settings.json").read_text())["hidden"] == [64]
    report = (made.folder / "report.txt").read_text()
    assert report.index("delta^2") < report.index("best epoch")  # the check table comes first
    header, first = (made.folder / "history_0.csv").read_text().splitlines()[:2]
    assert header == "epoch,cost,accuracy,validation_cost,validation_accuracy,noise_scale,seconds"
    assert first.startswith("1,")


def test_a_row_of_mnists_table_is_of_one_epoch():
    history = {"accuracy": np.asarray([0.8, 0.9, 0.95]), "validation_accuracy": np.asarray([0.7, 0.8, 0.85])}
    result = SimpleNamespace(best_epoch=2, history=history)
    assert mnist._read_best_epoch(result) == {"best epoch": 2, "train": 0.9, "validation": 0.8}


def test_a_published_figure_that_is_missed_is_an_exit_status(out, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(results, "_score_seeds", lambda row, settings: [0.9])
    settings = results.Settings(rows=("spirals",))
    made = out("results", settings)
    with pytest.raises(NotReached, match="1 of 1 published figures are not reached: two spirals"):
        results.run(settings, made)
    assert "NO" in (made.folder / "report.txt").read_text() and (made.folder / "results.png").exists()
    monkeypatch.chdir(tmp_path)
    assert command.main(["results", "--rows", "spirals"]) == 1
    assert "results: 1 of 1 published figures are not reached" in capsys.readouterr().err
    monkeypatch.setattr(results, "_score_seeds", lambda row, settings: [1.0])
    assert command.main(["results", "--rows", "spirals"]) == 0


@pytest.mark.parametrize("seed", range(6))
def test_no_label_of_searchs_picture_lies_on_another(seed):
    rng = np.random.default_rng(seed)
    n, width = int(rng.integers(1, 40)), seed / 5  # in decades, from a point to the whole space
    trials = [{"learning_rate": 10.0 ** rng.uniform(-1 - 2 * width, -1), "momentum": float(rng.choice([0, 0.9])),
               "l2": 10.0 ** rng.uniform(-3 - 3 * width, -3), "hidden": (64,), "activation": "relu"}
              for _ in range(n)]  # fmt: skip
    scores = 10 ** rng.uniform(-1.5 * width - 0.5, -0.5, n) - 1
    scores[0] = (np.inf, -1.0, scores[0])[seed % 3]  # diverged, no error
    found = SimpleNamespace(trials=trials, scores=scores, epochs=rng.choice([1, 3, 9], n))
    figure = search._picture(found)
    figure.canvas.draw()
    for ax in figure.axes[:3]:
        drawn = sum(len(points.get_offsets()) for points in ax.collections)
        marked = sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "x")
        assert drawn - np.isinf(scores).sum() + marked == n  # a diverged one is marked at the edge
        for along, axis in enumerate((ax.xaxis, ax.yaxis)):
            low, high = sorted(axis.get_view_interval())
            labels = [t for t in axis.get_ticklabels(which="both") if t.get_text() and t.get_visible()]
            boxes = [t.get_window_extent() for t in labels if low <= t.get_position()[along] <= high]
            spans = sorted((box.get_points()[0, along], box.get_points()[1, along]) for box in boxes)
            assert all(end <= start for (_, end), (start, _) in pairwise(spans))
            assert spans or (axis is ax.yaxis and ax is not figure.axes[0])  # the panels share one


def test_epsilon_is_at_most_that_of_abadi():
    """Abadi et al. 2016: 1.26 for q = 0.01, sigma = 4, 10,000 steps, delta = 1e-5; conversions since are tighter."""
    assert 0.9 <= private.epsilon(4.0, 0.01, 10_000, 1e-5) <= 1.26


def test_the_first_food_of_the_notes_is_almost_all_carbohydrate():
    grams = [of_foods[0] for of_foods in vectorization.CALORIES.values()]
    assert vectorization.FOODS[0] == "apples" and 100 * grams[0] / sum(grams) == approx(94.9, abs=0.05)
