"""The stated expectations of the experiments circuits, flow and parity."""

import math

import jax
import pytest

from experiments import circuits, flow, parity


def test_circuits_equal_autodiff_and_the_notes(out):
    settings = circuits.Settings()
    made = out("circuits", settings)
    shown = circuits.run(settings, made)
    assert shown["difference"] <= 1e-12
    assert [shown[name] for name in ("value", "x", "y", "z")] == [-12, -4, -4, 3]
    assert {path.stem for path in made.folder.glob("*.png")} == {"notes", "sigmoid", "routing", "network"}


def test_the_flow_along_paths_equals_the_recursion(out):
    settings = flow.Settings()
    made = out("flow", settings)
    assert max(flow.run(settings, made).values()) <= 1e-12
    assert (made.folder / "flow.png").exists()
    report = (made.folder / "report.txt").read_text()
    assert report.count("w z_3^1 ") == 4  # paths of the chosen weight
    deeper = flow.Settings(sizes=(3, 4, 3, 5), label=5, quick=True)
    assert max(flow.run(deeper, out("flow", deeper)).values()) <= 1e-12
    for wrong, message in (
        ({"weight": (5, 1)}, r"weight is \(5, 1\), expected a unit from 1 to 4"),
        ({"label": 0}, "label is 0, expected a class from 1 to 4"),
        ({"sizes": (3, 4)}, r"sizes is \(3, 4\), expected a hidden layer"),
    ):
        with pytest.raises(ValueError, match=message):
            flow.run(flow.Settings(**wrong), made)


@pytest.mark.parametrize("name", parity.BY_HAND)
def test_parity_by_hand_is_exact_and_as_large_as_promised(name):
    for n in (2, 3, 5, 8, 10):
        net, params = parity.BY_HAND[name](n)
        assert parity.wrong(net, params) == 0
        if name == "tree of XORs":
            levels = math.ceil(math.log2(n))
            assert net.depth - 1 == levels and parity.hidden_units(net) <= 2 * (n - 1) + levels
        else:
            assert net.depth == 2
            assert parity.hidden_units(net) == (n if name == "n thresholds" else 2 ** (n - 1))
    moved = jax.tree.map(lambda a: a.at[(0,) * a.ndim].add(1), params)  # and what is wrong is seen to be
    assert parity.wrong(net, moved) > 0


def test_depth_helps_to_learn_parity(out):
    settings = parity.Settings(quick=True, depths=(1, 3), steps=2000)
    made = out("parity", settings)
    shown = parity.run(settings, made)
    assert shown["mistakes"] == 0 and shown["deepest"] >= 0.75
    report = (made.folder / "report.txt").read_text()
    assert "512 units, 1 deep, 0 wrong" in report and "what AND gates joined by an OR need" in report
    assert {path.name for path in made.folder.iterdir()} >= {"units.csv", "parity.png"}
    with pytest.raises(ValueError, match="largest and bits are 17 and 8, expected 2 to 16 and 2 to 10"):
        parity.run(parity.Settings(largest=17), made)
