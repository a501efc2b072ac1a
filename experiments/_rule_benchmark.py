"""What a rule costs beside backpropagation, and `as_function` beside `backprop` and its mean gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments._readout_benchmark import alternate, compiled
from jaxmlp import rules
from jaxmlp.network import Params

RULES = {
    "backpropagation": rules.backprop,
    "feedback alignment": rules.feedback_alignment(),
    "direct feedback alignment": rules.direct_feedback_alignment(),
    "sign symmetric": rules.sign_symmetric(),
    "sign, random magnitudes": rules.sign_symmetric("he"),
    "clipped": rules.clipped(0.1),
    "normalised": rules.normalised(),
    "dropped": rules.dropped(0.5),
}


def table(net: jm.MLP, params: Params, X, Y, rounds: int, repeats: int) -> tuple[list[dict[str, str]], dict]:
    """A row for each rule's gradient, and one for `as_function`, as ratios to backpropagation's."""
    calls: dict[str, Callable[[], None]] = {}
    for name, rule in RULES.items():
        state = rule.start(net, jax.random.key(0))
        by_rule = lambda p, X, Y, s, rule=rule: jm.value_and_grad(net, p, X, Y, rule=rule, rule_state=s)
        calls[name] = compiled(by_rule, params, X, Y, state)[0]
    scores = jm.MLP(net.sizes, net.hidden)  # identity output: the loss is outside
    function = jm.as_function(scores)

    def outside(params, X, Y):
        log_p = jax.nn.log_softmax(function(params, X))
        return -jnp.mean(jnp.take_along_axis(log_p, Y[:, None], axis=1))

    calls["as_function under jax.grad"] = compiled(jax.value_and_grad(outside), params, X, Y)[0]
    times = alternate(calls, rounds, repeats)
    ratios = {name: seconds / times["backpropagation"] for name, seconds in times.items()}
    rows = [{"gradient by": name, "ms": f"{1e3 * np.median(times[name]):.2f}", "ratio": f"{np.median(ratio):.3f}",
             "quartiles": "{:.2f} to {:.2f}".format(*np.percentile(ratio, [25, 75]))}
            for name, ratio in ratios.items()]  # fmt: skip
    return rows, {name: float(np.median(ratio)) for name, ratio in ratios.items()}
