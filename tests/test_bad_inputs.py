"""Bad input at the doors of training, `fit`, `sweep` and `search`: one message for one mistake, before any training."""

import inspect

import jax
import numpy as np
import optax
import problems
import pytest
from problems import KEYS, NET, examples

import jaxmlp as jm

pytestmark = pytest.mark.wrong_arguments

X, Y = examples()
HYPER = {"learning_rate": 0.3}
PARAMS = jm.init(NET, jax.random.key(0))
IN_SPACE = ("keep", "label_smoothing", "input_noise", "average", "scale", "batch_size", "initial")


def fit(**settings):
    settings = {"optimizer": optax.sgd, "hyper": HYPER, "params": PARAMS} | settings
    return problems.fit(settings.pop("params"), **{"data": (X, Y)} | settings)


def sweep(**settings):
    return problems.sweep(**{"data": (X, Y), "hyper": HYPER, "epochs": 1} | settings)


def search(**settings):
    """With one setting in the space, that is not among `settings`."""
    space = {"average": [0.5]} if "scale" in settings else {"scale": [1.0]}
    settings = {"space": space, "data": (X, Y), "hyper": HYPER, "epochs": 1, "validation": examples(5)} | settings
    return problems.search(**settings)


def space(**settings):
    """A search with the setting in its space."""
    ((name, value),) = settings.items()
    in_space = {name: [value] for name, value in (value if name == "hyper" else {name: value}).items()}
    return search(space=in_space, hyper=None if "learning_rate" in in_space else HYPER)


DOORS = {"fit": fit, "sweep": sweep, "search": search, "space": space}
OF_FIT, OF_SWEEP = (set(inspect.signature(door).parameters) for door in (jm.fit, jm.sweep))
TAKEN = {
    "fit": OF_FIT,
    "sweep": OF_SWEEP,
    "search": OF_SWEEP - {"keys", "checkpoints", "checkpoint_every"} | set(inspect.signature(jm.search).parameters),
    "space": {"hyper", *IN_SPACE},
}


def takes(door, settings):
    """Whether all of `settings` are among a door's arguments; a space takes one, with one value for all members."""
    alone = len(settings) == 1 and not isinstance(next(iter(settings.values())), list)
    return settings.keys() <= TAKEN[door] and (door != "space" or alone)


def bad(message, *doors, **settings):
    """A row of a table: `settings` that all `doors` refuse with `message`; by default those that take them."""
    chosen = [door for door in doors or DOORS if takes(door, settings)]
    return pytest.param(chosen, settings, message, id=f"{' and '.join(settings)}: {message[:50]}")


SCHEDULE = optax.constant_schedule(1.0)
WHOLE = r"expected (a whole number of )?at least 1"

NUMBERS = [
    bad(r"average is 2, expected a finite number of at least 0 and below 1$", average=2),
    bad(r"average is 1, expected a finite number of at least 0 and below 1$", average=1),
    bad(r"average is -0.5, expected a finite number of at least 0 and below 1$", average=-0.5),
    bad(r"average is nan, expected a finite number of at least 0 and below 1$", average=np.nan),
    bad(r"average is 'high', expected a finite number of at least 0 and below 1$", average="high"),
    bad(r"keep is 0, expected a finite number above 0 and at most 1$", keep=0),
    bad(r"keep is 1.5, expected a finite number above 0 and at most 1$", keep=1.5),
    bad(r"keep is nan, expected a finite number above 0 and at most 1$", keep=np.nan),
    bad(r"input_noise is -1, expected a finite number of at least 0$", input_noise=-1),
    bad(r"input_noise is inf, expected a finite number of at least 0$", input_noise=np.inf),
    bad(r"label_smoothing is 2, expected a finite number of at least 0 and at most 1$", label_smoothing=2),
    bad(r"label_smoothing is -0.1, expected a finite number of at least 0 and at most 1$", label_smoothing=-0.1),
    bad(r"scale is inf, expected a finite number$", scale=np.inf),
    bad(r"scale is 'large', expected a finite number$", scale="large"),
    bad(r"hyper\['learning_rate'\] is nan, expected a finite number$", hyper={"learning_rate": np.nan}),
    bad(r"hyper\['learning_rate'\] is inf, expected a finite number$", hyper={"learning_rate": np.inf}),
    bad(r"patience is 0, expected a whole number of at least 1$", patience=0, validation=examples(5)),
    bad(r"patience is 2.5, expected a whole number of at least 1$", patience=2.5, validation=examples(5)),
    # A value for each member: `fit` has none.
    bad(r"average is \[0.5, 2\], expected finite numbers of at least 0 and below 1$", "sweep", "search",
        average=[0.5, 2]),
    bad(r"keep is \[1, 1, 1, 0\], expected finite numbers above 0 and at most 1$", "sweep", "search",
        keep=[1, 1, 1, 0]),
    bad(r"input_noise is \[0, -1\], expected finite numbers of at least 0$", "sweep", "search", input_noise=[0, -1]),
    bad(r"label_smoothing is \[0, 2\], expected finite numbers of at least 0 and at most 1$", "sweep", "search",
        label_smoothing=[0, 2]),
    bad(r"scale is \[1, nan\], expected finite numbers$", "sweep", "search", scale=[1, np.nan]),
    bad(r"hyper\['learning_rate'\] is \[0.1, nan\], expected finite numbers$", "sweep", "search",
        hyper={"learning_rate": [0.1, np.nan]}),
    bad(r"patience is \[1, 0\], expected whole numbers of at least 1$", "sweep", "search", patience=[1, 0],
        validation=examples(5)),
]  # fmt: skip

EXAMPLES = [
    bad(r"data is a tuple of 1, expected a tuple \(X, Y\)", data=(X,)),
    bad(r"X has 2 features, the network takes 3", data=(X[:, :2], Y)),
    bad(r"Y has shape \(7,\), expected \(10, 2\) or \(10,\)", data=(X, Y[:7])),
    bad(r"Y holds the class 2, expected classes 0 to 1", data=(X, Y + 1)),
    bad(r"X holds nan at \(0, 0\), expected finite numbers", data=(X * np.nan, Y)),
    bad(r"X is empty", data=(X[:0], Y[:0])),
    bad(r"validation is a tuple of 1", validation=examples(5)[:1]),
    bad(r"validation X has 1 features", validation=(X[:5, :1], Y[:5])),
    bad(r"weights has shape \(3,\), expected one weight for each of the 10 examples", weights=np.ones(3)),
    bad(r"weights holds values from -1 to -1, expected none below 0 and not all 0", weights=-np.ones(10)),
    bad(r"weights are given, expected none with sampling='poisson' or a readout", weights=np.ones(10),
        readout=lambda trace, weights, key: jm.mean_gradient(trace)),
    bad(r"class_weights has shape \(3,\), expected one weight for each of the 2 classes", class_weights=[1, 2, 3]),
    bad(r"augment turns an example \(3,\) of float32 into \(2,\) of float32", augment=lambda key, x: x[:2]),
    bad(r"augment fails on a key and an example \(3,\)", augment=lambda x: x),
    bad(r"preprocess is 255, expected a function of one example", preprocess=255),
    # Batches are read by `fit` alone.
    bad(r"data is an int, expected a tuple \(X, Y\), or a re-iterable", "fit", data=3),
    bad(r"data: batch 0 is an int, expected \(X, Y\) or \(X, Y, weights\); arrays go into a tuple", "fit", data=[1, 2]),
    bad(r"data is a list_iterator, which can be read only once", "fit", data=iter([(X, Y)])),
    bad(r"batch_size is given, but data is an iterable of batches", "fit", data=[(X, Y)], batch_size=3),
    bad(r"data: batch 1 is 1 things, expected \(X, Y\)", "fit", data=[(X, Y), (X,)]),
    bad(r"data: X of batch 1 holds nan at \(0, 0\)", "fit", data=[(X, Y), (X * np.nan, Y)]),
]  # fmt: skip

RUNS = [
    bad(rf"epochs is 0, {WHOLE}", epochs=0),
    bad(r"epochs is 2.5, expected a whole number", epochs=2.5),
    bad(r"epochs is None, .*expected epochs alone", "fit", epochs=None),
    bad(r"steps is 5, .*expected epochs alone with sampling='shuffle'", steps=5),
    bad(r"steps is None, epochs is 1; expected steps", sampling="replacement"),
    bad(r"sampling is 'bootstrap', expected one of 'shuffle', 'replacement', 'poisson'", sampling="bootstrap"),
    bad(rf"batch_size is 0, {WHOLE}", batch_size=0),
    bad(r"batch_size is 11, but there are 10 examples; expected at most 10", batch_size=11),
    bad(r"patience is 3, but validation is None", "fit", "sweep", patience=3),
    bad(r"best_by is 'acuracy', .*did you mean 'accuracy'\?", best_by="acuracy"),
    bad(r"key is 3, expected one key", key=3),
    bad(r"optimizer is 'sgd', expected an optax transformation, or a factory and hyper", optimizer="sgd", hyper=None),
    bad(r"hyper is .*, but optimizer is made already", optimizer=optax.sgd(0.1), hyper={"learning_rate": 1.0}),
    bad(r"hyper is .*and the optimizer's factory refuses it", "fit", "sweep", "search", hyper={"rate": 1.0}),
    bad(r"hyper is None, and the optimizer's factory refuses it", "fit", "sweep", "search", hyper=None),
    bad(r"hyper\['learning_rate'\] is 'high', expected", hyper={"learning_rate": "high"}),
    bad(r"hyper\['learning_rate'\] is a function; pass a sched", hyper={"learning_rate": SCHEDULE}),
    bad(r"'nesterov'\] is True, .*partial", hyper={"learning_rate": 1, "nesterov": True}),
    bad(r"expected the result of its gradient_transformation\(\)", optimizer=optax.MultiSteps(optax.sgd(0.1), 2),
        hyper=None),
    bad(r"optimizer makes a int, expected an optax transformation", optimizer=lambda: 3, hyper=None),
    bad(r"penalties is 0.1, expected penalties such as jaxmlp.l2", penalties=0.1),
    bad(r"l2 has shape \(3,\), expected a number, or one for each of the 2 layers", "fit", penalties=jm.l2([1, 2, 3])),
    bad(r"keep has shape \(3,\), expected a number, or one for each of the 2 layers", "fit", keep=(0.5, 0.5, 0.5)),
    bad(r"rule is 'sign', expected a Rule", rule="sign"),
    bad(r"initial is 'hee', .*did you mean 'he'", initial="hee"),
    bad(rf"members_at_once is 0, {WHOLE}", members_at_once=0),
    bad(r"callback is 3, expected a function", callback=3),
    bad(r"callback takes \(epoch\), expected a function of two arguments", callback=lambda epoch: None),
    bad(r"log is '.', a folder", log="."),
    bad(r"checkpoints is .*test_bad_inputs.py', a file, expected a folder", checkpoints=__file__),
    bad(rf"checkpoint_every is 0, {WHOLE}", checkpoint_every=0),
]  # fmt: skip

MEMBERS = [
    bad(r"nothing has a member axis, expected keys, or any other value", "sweep", keys=KEYS[0]),
    bad(r"keys is 3, expected a key, or an array of them", "sweep", keys=3),
    bad(r"hyper\['learning_rate'\] has 2 members, but keys has 4", "sweep", hyper={"learning_rate": [0.1, 0.2]}),
    bad(r"l2 has shape \(4, 3\), expected 2 columns, one for each layer", "sweep", penalties=jm.l2([[1, 2, 3]] * 4)),
    bad(r"l2 has 2 members, but keys has 4", "sweep", penalties=jm.l2([1, 2])),
    bad(r"weights holds values from 0 to 0", "sweep", weights=np.zeros((4, 10))),
    bad(r"weights are all 0 for a member", "sweep", weights=np.eye(4, 10) * [[0], [1], [1], [1]]),
    bad(r"Y has 3 members, but keys has 4", "sweep", data=(X, np.zeros((3, 10), np.int32))),
    bad(r"Y holds the class 2, expected classes 0 to 1", "sweep", data=(X, np.full((4, 10), 2))),
    bad(r"initial has 2 members, but keys has 4", "sweep", initial=jax.vmap(lambda k: jm.init(NET, k))(KEYS[:2])),
    bad(r"net is 'NET', expected an MLP, or a list with one for each member", "sweep", net="NET"),
    bad(r"net has networks of \[\d, 5\] inputs, expected as many in each", "sweep",
        net=[NET, NET, NET, jm.MLP((5, 1))]),
    bad(r"keys has 4 members, but net has 3", "sweep", net=[NET] * 3),
]  # fmt: skip


def network(width):
    return jm.MLP((3, width, 2), "tanh", "softmax", "cross_entropy")


RATES = {"learning_rate": [0.1, 0.2]}
SPACES = [
    ({}, r"epochs is None and budget is None, expected one of them"),
    ({"epochs": 1, "budget": 2}, r"epochs is 1 and budget is 2"),
    ({"budget": 1}, r"budget is 1 epochs, expected at least 2: 2 settings in 1 rungs"),
    ({"space": {}, "epochs": 1}, r"space is \{\}, expected a dict"),
    ({"space": {"learning_rate": 0.1}, "epochs": 1}, r"space\['learning_rate'\] is 0.1, expected a list"),
    ({"space": {"learning_rate": jm.uniform(0, 1)}, "epochs": 1}, r"is a distribution, expected a list for a grid"),
    ({"epochs": 1, "trials": 0}, rf"trials is 0, {WHOLE}"),
    ({"space": RATES | {"nope": [1]}, "epochs": 1}, r"a name of space is 'nope', expected one of"),
    ({"epochs": 1, "patient": 3}, r"argument of search is 'patient', .*did you mean 'patience'"),
    ({"epochs": 1, "optimizer": optax.sgd(0.1)},
     r"space has 'learning_rate', but optimizer is made already: expected a factory"),
    ({"space": {"learning_rat": [0.1]}, "epochs": 1},
     r"a name of space is 'learning_rat', expected one of .*did you mean 'learning_rate'"),
    ({"epochs": 1, "hyper": {"learning_rate": 1}}, r"learning_rate is given and in the space"),
    ({"space": {"l2": [0.1]}, "epochs": 1, "penalties": jm.l1(1.0)}, r"penalties are given and l2 is in the space"),
    ({"space": {"width": [0]}, "epochs": 1, "net": network}, rf"sizes\[1\] is 0, {WHOLE}"),
    ({"epochs": 1, "net": lambda: 3}, r"net makes a int of \{\}, expected an MLP"),
    ({"epochs": 1, "net": "net"}, r"net is 'net', expected an MLP, or a function that makes one"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), SPACES)
def test_a_mistake_in_a_search_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        problems.search(**{"space": RATES} | settings)


@pytest.mark.parametrize(
    ("make", "low", "high", "message"),
    [
        (jm.uniform, 2, 1, r"low is 2 and high 1, expected low below high"),
        (jm.log_uniform, 0, 1, r"low is 0, expected a (finite )?number above 0"),
    ],
)
def test_a_mistake_in_a_distribution_is_named(make, low, high, message):
    with pytest.raises(ValueError, match=message):
        make(low, high)


@pytest.mark.parametrize(("doors", "settings", "message"), [*NUMBERS, *EXAMPLES, *RUNS, *MEMBERS])
def test_a_mistake_has_one_message_at_all_doors(doors, settings, message):
    messages = {}
    for door in doors:
        with pytest.raises(ValueError, match=message) as error:
            DOORS[door](**settings)
        messages[door] = str(error.value)
    assert len(set(messages.values())) == 1, messages


def test_the_bounds_themselves_are_taken_at_all_doors():
    bounds = {"average": 0, "keep": 1, "input_noise": 0, "label_smoothing": 1, "validation": examples(5)}
    fit(**bounds, patience=1)
    sweep(**bounds, patience=1, scale=-1)
    search(**bounds, patience=1)
    in_space = {name: [bounds[name]] for name in ("average", "keep", "input_noise", "label_smoothing")}
    search(space=in_space).retrain(progress=False)
