"""The newer quantities beside the libraries made for them: the same network, weights and examples, checked to agree.

Clipping beside jax_privacy, products with the Hessian and Kronecker factors beside curvlinops, posteriors beside
laplace-torch, influence beside kronfluence, tangent kernels beside neural-tangents and `jax.jacrev`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxmlp as jm
from experiments._benchmark.problem import make_problem, widths
from experiments._benchmark.timing import Cell, digits, make_contestants, peer, peer_rows, time_in_turns
from experiments.datasets import Pictures
from experiments.output import Output
from jaxmlp.methods.normal_weights import Structure
from jaxmlp.network import Params

SECTION = "methods"
BATCH_SIZE, MAX_NORM = 512, 1.0
ROUNDS = 5  # at most: some peers take minutes for more
ENTRIES = 10**8  # of a batch's gradients, where jax_privacy forms all at once
TOLERANCE = 1e-3  # of the distance between a peer's values and ours, over the norm of ours
OF_SCORES = 0.03  # of influence: both sides divide by second moments that float32 rounds
FACTORS = {"type-2": jm.hessian_root, "empirical": jm.output_delta}  # curvlinops' name of a start


@dataclass(frozen=True)
class Sizes:
    """The amount of work in this section's runs."""

    networks: tuple[str, ...]  # of clipping, Hessian products and factors
    small: str  # the network of posteriors and kernels, whose peers form Jacobians
    structures: tuple[Structure, ...]  # of posteriors
    posterior: tuple[int, int]  # examples of a posterior's fit and of its predictions
    kernel: int  # examples of a tangent kernel
    influence: tuple[str, int, int]  # the network, the training and the test examples of influence


FULL = Sizes(
    networks=("784-64-10", "784-1024-1024-10"),
    small="784-64-10",
    structures=("kronecker", "diagonal", "last_layer"),
    posterior=(1024, 64),
    kernel=128,
    influence=("784-128-64-10", 2000, 200),
)
QUICK = Sizes(("784-16-10",), "784-16-10", ("kronecker",), (256, 32), 32, ("784-16-10", 256, 32))


@dataclass
class Contestant:
    """A call that does the task once and keeps its result; `read` gives the result's arrays in the order of ours."""

    run: Callable[[], Any]
    read: Callable[[Any], list] = jax.tree.leaves
    result: Any = field(default=None, init=False)

    def __call__(self) -> None:
        self.result = self.run()

    def values(self) -> np.ndarray:
        """All entries of the result."""
        return np.concatenate([np.asarray(array, np.float64).ravel() for array in self.read(self.result)])


@dataclass(frozen=True)
class Task:
    """One row of the table for each peer: what makes the contestants, ours first."""

    name: str
    ours: Callable[[], Contestant]
    peers: dict[str, Callable[[], Contestant]]
    tolerance: float = TOLERANCE


def waiting(function: Callable, *arguments: Any, **options: Any) -> Contestant:
    """A contestant of ours."""
    return Contestant(lambda: jax.block_until_ready(function(*arguments, **options)))


def of_batches(sizes: Sizes, pictures: Pictures) -> Iterator[Task]:
    """The tasks of a batch, for each network."""
    for network in sizes.networks:
        yield from of_batch(network, pictures)


def of_batch(network: str, pictures: Pictures) -> Iterator[Task]:
    """The clipped gradient, products with the Hessian and the Gauss-Newton matrix, and Kronecker factors."""
    net, params, X, Y = examples(network, BATCH_SIZE, pictures)
    name, given = f"{network}, batch {BATCH_SIZE}", (params, np.asarray(X), np.asarray(Y))

    clip = jax.jit(lambda p, X, Y: jm.clipped_gradient(jm.backprop(net, p, X, Y), MAX_NORM))
    private = lambda at_a_time: peer("jax_methods", "jax_privacy", params, X, Y, MAX_NORM, at_a_time)
    peers = {"jax_privacy, 32 at a time": private(32)}
    if BATCH_SIZE * sum(leaf.size for leaf in jax.tree.leaves(params)) <= ENTRIES:
        peers = {"jax_privacy": private(None)} | peers
    yield Task(f"{name}, clipped gradient", partial(waiting, clip, params, X, Y), peers)

    v = jm.init(net, jax.random.key(1))
    for kind, product in (("Hessian", jm.hvp), ("Gauss-Newton", jm.ggnvp)):
        yield Task(f"{name}, {kind} times a vector", partial(waiting, product, net, params, X, Y, v),
                   {"curvlinops": peer("torch_methods", "curvlinops_product", kind, *given, v)})  # fmt: skip

    for kind, start in FACTORS.items():
        read = lambda p, X, Y, start=start: jm.kronecker_factors(jm.backprop(net, p, X, Y, start=start))
        yield Task(f"{name}, Kronecker factors, {kind}", partial(waiting, jax.jit(read), params, X, Y),
                   {"curvlinops": peer("torch_methods", "curvlinops_factors", kind, *given)})  # fmt: skip


def of_posteriors(sizes: Sizes, pictures: Pictures) -> Iterator[Task]:
    """The tasks of a posterior, for each structure."""
    for structure in sizes.structures:
        yield from of_posterior(structure, sizes, pictures)


def of_posterior(structure: Structure, sizes: Sizes, pictures: Pictures) -> Iterator[Task]:
    """The fit of a posterior, which ends with its evidence, and the variance of a regression's predictions."""
    fitted, predicted = sizes.posterior
    net, params, X, Y = examples(sizes.small, fitted, pictures)
    fit = lambda: jm.laplace(net, params, X, Y, structure).log_evidence
    arrays = params, np.asarray(X), np.asarray(Y)
    yield Task(f"{sizes.small}, {structure} posterior of {fitted:,}", lambda: Contestant(fit),
               {"laplace-torch": peer("torch_methods", "laplace_fit", structure, *arrays)})  # fmt: skip

    linear, one_hot = jm.MLP(net.sizes), jax.nn.one_hot(Y, net.sizes[-1])
    posterior = jm.laplace(linear, params, X, one_hot, structure)
    predict = lambda: tuple(posterior.predict(X[:predicted]))
    arrays = params, np.asarray(X), np.asarray(one_hot), predicted
    yield Task(f"{sizes.small}, {structure} variance of {predicted}", partial(waiting, predict),
               {"laplace-torch": peer("torch_methods", "laplace_predict", structure, *arrays)})  # fmt: skip


def of_influence(sizes: Sizes, pictures: Pictures) -> Iterator[Task]:
    """EK-FAC influence of training on test examples: factors, eigenvalues and scores, after 20 steps of training."""
    network, n, n_test = sizes.influence
    net, params, X, Y = examples(network, n + n_test, pictures, steps=20)
    train, test = (X[:n], Y[:n]), (X[n:], Y[n:])
    scores = partial(jm.influence, net, params, train, test, "ekfac", curvature="empirical", progress=False)
    arrays = params, *(np.asarray(array) for array in (*train, *test))
    yield Task(f"{network}, influence of {n:,} on {n_test}", partial(waiting, scores),
               {"kronfluence": peer("torch_influence", "kronfluence_scores", *arrays)}, OF_SCORES)  # fmt: skip


def of_kernels(sizes: Sizes, pictures: Pictures) -> Iterator[Task]:
    """The empirical tangent kernel."""
    net, params, X, _ = examples(sizes.small, sizes.kernel, pictures)
    linear = jm.MLP(net.sizes)
    yield Task(f"{sizes.small}, tangent kernel of {sizes.kernel}", partial(waiting, jm.ntk, linear, params, X),
               {"jax.jacrev": peer("jax_methods", "jacobian_contraction", params, X),
                "neural-tangents": peer("jax_methods", "neural_tangents", params, X)})  # fmt: skip


def examples(network: str, m: int, pictures: Pictures, steps: int = 0) -> tuple[jm.MLP, Params, jax.Array, jax.Array]:
    """A network, its weights, after `steps` steps of gradient descent, and m examples."""
    problem = make_problem(widths(network), m, pictures, 0.1, steps=1)
    net, params = problem.net, problem.params
    X, _, Y = problem.on_device
    for _ in range(steps):
        gradient = jm.value_and_grad(net, params, X, Y)[1]
        params = jax.tree.map(lambda p, g: p - problem.rate * g, params, gradient)
    return net, params, X, Y


def measure(task: Task, rounds: int) -> Cell:
    """A cell of this section; a peer whose values are not ours takes no part."""
    calls, ready, absent = make_contestants({"ours": task.ours, **task.peers})
    ours, apart = calls["ours"].values(), {}
    for name in task.peers:
        if name in calls:
            theirs = calls[name].values()
            apart[name] = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
            if not apart[name] <= task.tolerance:
                absent[name] = f"its values are {apart[name]:.2g} from ours, expected {task.tolerance:g}"
                del calls[name]
    seconds = time_in_turns(calls, rounds)
    return Cell(SECTION, task.name, seconds, absent=absent, facts={"apart": apart, "ready_seconds": ready})


def section(pictures: Pictures, rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """A cell for each task, and a table of all."""
    sizes, cells = QUICK if quick else FULL, []
    for tasks in (of_batches, of_posteriors, of_influence, of_kernels):
        for task in tasks(sizes, pictures):
            cells.append(measure(task, min(rounds, ROUNDS)))
            yield cells[-1]
    out.table("newer quantities against the libraries made for them", [row for cell in cells for row in rows(cell)])


def rows(cell: Cell) -> list[dict[str, str]]:
    """A row for each peer; `apart` is the distance between its values and ours over the norm of ours."""
    apart = cell.facts["apart"]
    return [{**row, "apart": digits(apart[row["peer"]]) if row["peer"] else ""} for row in peer_rows(cell)]
