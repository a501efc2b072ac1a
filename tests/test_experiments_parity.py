"""Parity by hand: exact, and as large as promised."""

import math

import jax
import pytest

from experiments import parity


@pytest.mark.parametrize("name", parity.BY_HAND)
def test_parity_by_hand_is_exact_and_as_large_as_promised(name):
    for n in (2, 3, 5, 8, 10):
        net, params = parity.BY_HAND[name](n)
        assert parity.count_wrong(net, params) == 0
        if name == "tree of XORs":
            levels = math.ceil(math.log2(n))
            assert net.depth - 1 == levels and parity.hidden_units(net) <= 2 * (n - 1) + levels
        else:
            assert net.depth == 2
            assert parity.hidden_units(net) == (n if name == "n thresholds" else 2 ** (n - 1))
    moved = jax.tree.map(lambda a: a.at[(0,) * a.ndim].add(1), params)  # and what is wrong is seen to be
    assert parity.count_wrong(net, moved) > 0
