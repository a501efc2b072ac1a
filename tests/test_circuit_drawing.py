"""Pictures of circuits: every wire is there, and no label lies on another."""

import jax.numpy as jnp
import pytest

import jaxmlp as jm


def mixed(a, b, c, d):
    q = a * b + jnp.maximum(c, d)
    return 2 * q * a + jnp.exp(-q / (1 + c**2)) - d


def long(a, b):
    for _ in range(9):
        a, b = jnp.tanh(a * b), a - b
    return a + b


@pytest.mark.parametrize(("function", "arguments"), [(mixed, (3, -4, 2, -1)), (long, (0.3, 0.7))])
def test_drawing_shows_every_wire_and_keeps_labels_apart(function, arguments):
    found = jm.circuit(function, *arguments)
    figure = found.draw()
    figure.canvas.draw()
    assert figure.get_figwidth() < 14
    texts = figure.axes[0].texts
    assert {t.get_text().split(" = ")[0] for t in texts if " = " in t.get_text()} == {row.wire for row in found.rows}
    boxes = [t.get_window_extent().padded(3 if t.get_bbox_patch() else 0) for t in texts]
    for i, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0 and one.x1 <= figure.bbox.x1 and figure.bbox.y0 <= one.y0
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])
