"""The cost of each rule beside backpropagation, and of `as_function` beside `backprop` and its mean gradient."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

import jaxmlp as jm
from experiments._benchmark.ours import Epoch
from experiments._benchmark.problem import make_problem, widths
from experiments._benchmark.readouts import compile_call
from experiments._benchmark.timing import Call, Cell, milliseconds, quartiles, time_in_turns
from experiments.datasets import Pictures
from experiments.output import Output
from jaxmlp import rules
from jaxmlp.network import Params

RULES = {
    "backpropagation": rules.backprop,
    "feedback alignment": rules.feedback_alignment(),
    "direct feedback alignment": rules.direct_feedback_alignment(),
    "sign symmetric": rules.sign_symmetric(),
    "sign, random magnitudes": rules.sign_symmetric("he"),
    "clipped": rules.clipped(0.1),
    "normalized": rules.normalized(),
    "dropped": rules.dropped(0.5),
}


def gradients(net: jm.MLP, params: Params, X, Y, rounds: int, name: str) -> Cell:
    """The gradient by each rule, and by `as_function` under `jax.grad`."""
    calls: dict[str, Call] = {}
    for rule_name, rule in RULES.items():
        state = rule.start(net, jax.random.key(0))
        by_rule = lambda p, X, Y, s, rule=rule: jm.value_and_grad(net, p, X, Y, rule=rule, rule_state=s)
        calls[rule_name] = compile_call(by_rule, params, X, Y, state)[0]
    scores = jm.MLP(net.sizes, net.hidden)  # identity output: the loss is outside the network
    function = jm.as_function(scores)

    def outside(params, X, Y):
        log_p = jax.nn.log_softmax(function(params, X))
        return -jnp.mean(jnp.take_along_axis(log_p, Y[:, None], axis=1))

    calls["as_function under jax.grad"] = compile_call(jax.value_and_grad(outside), params, X, Y)[0]
    seconds = time_in_turns(calls, rounds)
    return Cell("rules", f"{name}, a gradient", seconds, tuple(seconds))


def section(pictures: Pictures, networks: tuple[str, ...], rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """A gradient at batch 512 and an epoch at batch 128 by each rule, beside backpropagation."""
    for network in networks:
        problem = make_problem(widths(network), 512, pictures, 0.01, steps=1)
        net, params = problem.net, problem.params
        X, Y = jnp.asarray(problem.X), jnp.asarray(problem.Y)
        cells = [gradients(net, params, X, Y, rounds, f"{network}, batch 512")]
        if not quick:
            whole = make_problem(widths(network), 128, pictures, 0.01)
            epochs = {name: Epoch(whole, rule=rule) for name, rule in RULES.items()}
            seconds = time_in_turns(dict(epochs), rounds)
            cells.append(Cell("rules", f"{network}, batch 128, an epoch", seconds, tuple(seconds)))
        yield from cells
        for cell in cells:
            out.table(f"backward rules at {cell.name}", [
                {"rule": name, "ms": milliseconds(seconds), "ratio": f"{cell.ratio(name):.3f}",
                 "quartiles": quartiles(cell.ratios(name))} for name, seconds in cell.seconds.items()
            ])  # fmt: skip
