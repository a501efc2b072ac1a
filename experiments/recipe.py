"""The basic recipe: diagnose bias or variance, apply the next remedy, and repeat.

Rows 20 and 21 of the notes' systems (note 002, "Training set, Dev Set, Test Set", "Mismatched train/test distribution"
and "Basic recipe for machine learning"). The recipe starts with too few units, examples and epochs. Against high bias
it tries a bigger network, longer training and another optimizer, in turn. Against high variance it tries more data,
regularization and a smaller network. It undoes a remedy that does not help. Expect the first diagnosis to be high bias
and later ones high variance. Expect the dev error to end within 2 points of the training error, and the training error
within 2 points of the best possible. Then the same network meets pictures from a worse camera. Expect a data mismatch,
which the train-dev set tells from variance. Training pictures made to look like the new ones (data synthesis) cure most
of it.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.data import scale_pixels
from jaxmlp.metrics import Diagnosis, diagnosis


@dataclass(frozen=True)
class Settings:
    bayes: float = 0.002  # the least possible error: about a human's on MNIST (LeCun et al. 1995)
    tolerance: float = 0.02  # a larger gap counts as a problem
    steps: int = 12  # most steps of the recipe in each half
    key: int = 0  # key of the split, the weights and the noise
    quick: bool = False  # a tenth of the examples, a tolerance of 5 points, at most 7 steps


class Sets(NamedTuple):
    """Pictures and labels. Training and train-dev pictures exist from both cameras."""

    X_train: dict[bool, np.ndarray]  # by whether the camera is the worse one
    Y_train: np.ndarray
    X_train_dev: dict[bool, np.ndarray]
    Y_train_dev: np.ndarray
    X_dev: np.ndarray
    Y_dev: np.ndarray
    X_test: np.ndarray
    Y_test: np.ndarray
    mismatched: bool  # whether dev and test pictures come from the worse camera


@dataclass(frozen=True)
class Plan:
    """The network, its training and its examples."""

    hidden: int = 4
    examples: int = 500
    epochs: int = 4
    optimizer: str = "SGD"
    regularization: str = "none"
    synthesis: bool = False  # whether every other training picture comes from the worse camera

    def __str__(self) -> str:
        made = ", half of them made noisy" if self.synthesis else ""
        return (f"{self.hidden} units, {self.examples:,} examples{made}, {self.epochs} epochs of {self.optimizer}, "
                f"regularization: {self.regularization}")  # fmt: skip


class Step(NamedTuple):
    """One trip around the recipe."""

    remedy: str  # the remedy that led to this step
    plan: Plan
    train: float
    train_dev: float | None
    dev: float
    test: float
    found: Diagnosis
    kept: bool
    seconds: float


OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "SGD": optax.sgd(0.05),
    "Adam": optax.adam(1e-3),
}
REGULARIZATION = {
    "none": {},
    "dropout": {"keep": (0.9, 0.5)},
    "dropout and shifts": {"keep": (0.9, 0.7), "augment": jm.data.shifts(1)},
}
Remedies = dict[str, dict[str, Callable[[Plan], Plan | None]]]  # by the problem; None if a remedy can go no further


def remedies(most: int) -> Remedies:
    """The remedies of each problem, with `most` as the largest number of training examples."""
    next_of = lambda names, name: next(iter(names[names.index(name) + 1 :]), name)
    change = lambda plan, **to: None if replace(plan, **to) == plan else replace(plan, **to)
    return {
        "high bias": {
            "bigger network": lambda p: change(p, hidden=min(8 * p.hidden, 256)),
            "train longer": lambda p: change(p, epochs=min(3 * p.epochs, 36)),
            "another optimizer": lambda p: change(p, optimizer=next_of(list(OPTIMIZERS), p.optimizer)),
        },
        "high variance": {
            "more data": lambda p: change(p, examples=min(5 * p.examples, most)),
            "regularization": lambda p: change(p, regularization=next_of(list(REGULARIZATION), p.regularization)),
            "smaller network": lambda p: change(p, hidden=max(p.hidden // 2, 32)),
        },
        "data mismatch": {"data like the dev set": lambda p: change(p, synthesis=True)},
    }


def run(settings: Settings, out: Output) -> dict[str, float]:
    if settings.steps < 1 or not 0 <= settings.bayes < 1 or not 0 < settings.tolerance < 1:
        raise ValueError(f"steps, bayes and tolerance are {settings.steps}, {settings.bayes}, {settings.tolerance}; "
                         "expected at least 1, and shares from 0 to 1")  # fmt: skip
    if settings.quick:
        settings = replace(settings, tolerance=0.05, steps=min(settings.steps, 7))
    worked = {"1% and 11%": str(diagnosis(0.01, 0.11)), "15% and 16%": str(diagnosis(0.15, 0.16))}
    out.say("; ".join(f"training and dev error {errors}: {name}" for errors, name in worked.items()))
    same, other = _sets(settings)
    first = follow(Plan(), same, settings, out)
    out.table("the recipe, from 4 units and 500 examples", _rows(first))
    reached = _last(first)
    second = follow(reached.plan, other, settings, out)
    out.table("the same network where dev and test pictures come from a worse camera", _rows(second))
    done = _last(second)
    out.say(f"test errors, read once at the end: {reached.test:.2%}, and {done.test:.2%} for the worse camera "
            f"({second[0].test:.2%} before its remedies)")  # fmt: skip
    pairs = np.concatenate([same.X_dev[:8], other.X_dev[:8]])
    out.picture("cameras", plotting.pictures(pairs, ["training camera"] * 8 + ["worse camera"] * 8))
    out.picture("errors", _picture(settings, first, second))
    out.close()
    return {"biased_first": float("high bias" in first[0].found.problems), "dev": reached.dev,
            "varied": float(any("high variance" in step.found.problems for step in first)),
            "bias": reached.found.bias, "variance": reached.found.variance, "mismatch": second[0].found.mismatch,
            "mismatch, after": done.found.mismatch, "dev, after": done.dev}  # fmt: skip


def _sets(settings: Settings) -> tuple[Sets, Sets]:
    """The same split twice, 70/10/10/10 by class; dev and test pictures of the second come from the worse camera."""
    pictures = datasets.load("mnist")
    m = 6000 if settings.quick else len(pictures.X)
    X, Y = pictures.X[:m], pictures.Y[:m]
    noisy = worse_camera(X, settings.key)
    parts = jm.data.split(jax.random.key(settings.key), m, (0.7, 0.1, 0.1, 0.1), stratify=Y)
    train, train_dev, dev, test = parts
    both = lambda part: {False: X[part], True: noisy[part]}
    sets = lambda seen, mismatched: Sets(both(train), Y[train], both(train_dev), Y[train_dev], seen[dev], Y[dev],
                                         seen[test], Y[test], mismatched)  # fmt: skip
    return sets(X, False), sets(noisy, True)


def worse_camera(X: np.ndarray, key: int) -> np.ndarray:
    """Pictures with 0.6 times the contrast and Gaussian noise of deviation 50 of 255."""
    noise = np.random.default_rng(key).standard_normal(X.shape, np.float32)
    return np.clip(np.float32(0.6) * X + 50 * noise, 0, 255).astype(np.uint8)


def follow(plan: Plan, sets: Sets, settings: Settings, out: Output) -> list[Step]:
    """Trains, diagnoses and remedies, until no problem or no remedy is left."""
    cures, tried = remedies(len(sets.Y_train)), Counter()
    steps, remedy, problem = [], "start", None
    for number in range(1, settings.steps + 1):
        step = _step(remedy, plan, sets, settings)
        if steps:
            best = _last(steps)
            step = step._replace(kept=step.train < best.train if problem == "high bias" else step.dev < best.dev)
        steps.append(step)
        if not step.kept:
            cures = {of: {name: cure for name, cure in each.items() if name != remedy} for of, each in cures.items()}
        problem, remedy, plan = _next(_last(steps), cures, tried)
        tried[remedy] += 1
        out.say(f"{number:2}: {'' if step.kept else 'undone, does not help: '}{step.plan}\n    {_describe(step)}; "
                + (f"next: {remedy}" if problem else remedy))  # fmt: skip
        if not problem:
            break
    return steps


def _next(step: Step, cures: Remedies, tried: Counter) -> tuple[str | None, str, Plan]:
    """The first problem that has a remedy, its least tried remedy, and the plan with it."""
    for problem in step.found.problems:
        plans = {name: plan for name, cure in cures[problem].items() if (plan := cure(step.plan)) is not None}
        if plans:
            name = min(plans, key=lambda name: tried[name])
            return problem, name, plans[name]
    return None, "nothing left to try" if step.found.problems else "done", step.plan


def _last(steps: list[Step]) -> Step:
    return [step for step in steps if step.kept][-1]


def _step(remedy: str, plan: Plan, sets: Sets, settings: Settings) -> Step:
    began = time.perf_counter()
    X, Y = _mix(sets.X_train, plan, plan.examples), sets.Y_train[: plan.examples]
    net = jm.MLP((784, plan.hidden, 10), "relu", "softmax", "cross_entropy")
    key = jax.random.key(settings.key)
    params = jm.fit(net, jm.init(net, key), (X, Y), optimizer=OPTIMIZERS[plan.optimizer], epochs=plan.epochs,
                    batch_size=50, key=key, preprocess=scale_pixels, progress=False,
                    **REGULARIZATION[plan.regularization]).params  # fmt: skip

    def error(X, Y) -> float:
        return 1 - float(jm.metrics.accuracy(jm.predict(net, params, X, preprocess=scale_pixels), Y))

    train, dev, test = error(X, Y), error(sets.X_dev, sets.Y_dev), error(sets.X_test, sets.Y_test)
    train_dev = error(_mix(sets.X_train_dev, plan), sets.Y_train_dev) if sets.mismatched else None
    found = diagnosis(train, dev, train_dev=train_dev, bayes=settings.bayes, tolerance=settings.tolerance)
    return Step(remedy, plan, train, train_dev, dev, test, found, True, time.perf_counter() - began)


def _mix(X: dict[bool, np.ndarray], plan: Plan, m: int | None = None) -> np.ndarray:
    """The first m pictures; with synthesis every other one comes from the worse camera."""
    mixed = X[False][:m].copy()
    if plan.synthesis:
        mixed[::2] = X[True][:m][::2]
    return mixed


def _describe(step: Step) -> str:
    between = "" if step.train_dev is None else f", train-dev {step.train_dev:.2%}"
    return f"errors: train {step.train:.2%}{between}, dev {step.dev:.2%}: {step.found}"


def _rows(steps: list[Step]) -> list[dict[str, str]]:
    rows = []
    for number, step in enumerate(steps, start=1):
        row = {"step": str(number), "remedy": step.remedy, "units": str(step.plan.hidden),
               "examples": f"{step.plan.examples:,}", "epochs": f"{step.plan.epochs}, {step.plan.optimizer}",
               "regularization": step.plan.regularization, "train": f"{step.train:.2%}"}  # fmt: skip
        if step.train_dev is not None:
            row["train-dev"] = f"{step.train_dev:.2%}"
        rows.append(row | {"dev": f"{step.dev:.2%}", "diagnosis": str(step.found), "kept": "yes" if step.kept else "no",
                           "seconds": f"{step.seconds:.1f}"})  # fmt: skip
    return rows


def _picture(settings: Settings, first: list[Step], second: list[Step]):
    figure, axes = plotting.figure(1, 2, size=(5.6, 4.2), sharey=True)
    titles = ("training and dev pictures from one camera", "dev pictures from a worse camera")
    for ax, steps, title in zip(axes, (first, second), titles, strict=True):
        at = np.arange(1, len(steps) + 1)
        lines = {"train": ("s", plotting.ORANGE), "train_dev": ("^", plotting.GREEN), "dev": ("o", plotting.BLUE)}
        for name, (mark, color) in lines.items():
            errors = [getattr(step, name) for step in steps]
            if errors[0] is not None:
                label = name.replace("_", "-")
                ax.semilogy(at, 100 * np.maximum(errors, 1e-3), mark + "-", color=color, label=label)
        ax.axhline(100 * settings.bayes, color="gray", linestyle=":", label="best possible")
        names = [step.remedy + ("" if step.kept else "\n(undone)") for step in steps]
        ax.set_xticks(at, names, rotation=40, ha="right", rotation_mode="anchor", fontsize="small")
        ax.set_xlabel("remedy")
        ax.set_title(title, fontsize="medium")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("error (%; 0.1 or less drawn at 0.1)")
    axes[1].legend(fontsize="small")
    return figure
