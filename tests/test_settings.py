"""The table of settings: it has every setting of the public functions, and one message for one mistake."""

import inspect

import jax
import optax
import pytest
from problems import NET, examples

import jaxmlp as jm
from jaxmlp.training.settings import REQUIRED, TABLE, as_given

BAD = object()  # no setting takes it
OF = {door: inspect.signature(door).parameters for door in (jm.fit, jm.sweep)}


def call(door, **settings):
    """A call of a public function, right but for `settings`."""
    right = {"net": NET, "data": examples(10), "optimizer": optax.sgd, "hyper": {"learning_rate": 0.1}, "epochs": 1,
             "progress": False}  # fmt: skip
    key = jax.random.key(0)
    own = {
        jm.fit: {"params": jm.init(NET, key), "key": key},
        jm.sweep: {"keys": jax.random.split(key, 2)},
        jm.search: {
            "space": {"average" if "scale" in settings else "scale": [0.5, 0.9]},
            "key": key,
            "validation": examples(5),
        },
    }
    return door(**right | own[door] | settings)


def test_the_table_has_every_setting_with_its_default():
    for door, parameters in OF.items():
        for name, parameter in list(parameters.items()):
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert parameter.default == (
                    parameter.empty if name == "epochs" and door is jm.sweep else TABLE[name].default
                )
    named = {name for parameters in OF.values() for name in parameters}
    assert set(TABLE) <= named and TABLE["optimizer"].default is REQUIRED


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.read is not as_given])
def test_every_row_refuses_with_one_message_at_all_doors(name):
    doors = [door for door in OF if name in OF[door]]
    if name in {"key", *OF[jm.sweep]} - {"keys", "checkpoints", "checkpoint_every"}:  # a search has none of these
        doors.append(jm.search)
    messages = set()
    for door in doors:
        with pytest.raises(ValueError, match=name) as error:
            call(door, **{name: BAD})
        messages.add(str(error.value))
    assert len(messages) == 1
