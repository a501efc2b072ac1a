"""A whole population as one safetensors file: the parameters of all members, their histories, scores and settings."""

import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxmlp import files, validate
from jaxmlp.activations import Activation
from jaxmlp.checked_files import FilePath
from jaxmlp.losses import Loss
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.training.ensembles import read_networks

if TYPE_CHECKING:
    from jaxmlp.training.result import SweepResult

PARAMS = ("params", "last_params")
KINDS = {"stopped_early": "b", "diverged": "b", "scores": "f", "epochs": "iu", "best_epoch": "iu"}  # of NumPy


def unknown_preprocess(x: Any) -> Any:
    """Stands for a preprocess that a file or a pickle could not hold."""
    raise ValueError(
        "preprocess is unknown: the members trained with one, which neither files nor pickles hold; expected it in "
        "predict(X, preprocess=), or dataclasses.replace(many, preprocess=)"
    )


def write(path: FilePath, many: "SweepResult") -> None:
    """See `SweepResult.save`."""
    each = read_networks(many)
    nets = list(dict.fromkeys(each))
    of = None if isinstance(many.net, MLP) else [nets.index(net) for net in each]
    texts = {name: values.tolist() for name, values in many.settings.items() if values.dtype.kind == "U"}
    arrays: dict[str, Any] = {f"history.{name}": column for name, column in many.history.items()}
    arrays |= {f"settings.{name}": values for name, values in many.settings.items() if name not in texts}
    arrays |= {name: getattr(many, name) for name in KINDS if getattr(many, name) is not None}
    for which in PARAMS:
        given = getattr(many, which)
        for start, params in [(which, given)] if of is None else [(f"{which}[{i}]", p) for i, p in enumerate(given)]:
            for l, layer in enumerate(params, start=1):
                arrays |= {f"{start}.W{l}": layer.W, f"{start}.b{l}": layer.b}
    about = {"kind": "population", "nets": [files.describe(net) for net in nets], "net of each": of, "texts": texts,
             "history": list(many.history), "settings": list(many.settings),
             "preprocess": many.preprocess is not None}  # fmt: skip
    files.write(path, {name: files.to_numpy(array, name) for name, array in arrays.items()}, about)


def read(path: FilePath, own: Sequence[Activation | Loss]) -> dict[str, Any]:
    """The fields of a SweepResult in a file of `write`."""
    tensors, about = files.read(path, "population")
    held = _Held(path, tensors, about)
    fields: dict[str, Any] = {"states": None}
    for name, kind in KINDS.items():
        fields[name] = None if name == "best_epoch" and name not in tensors else held.take(name, kind, E=True)
    fields |= {"history": held.history(), "settings": held.settings()}
    for name in ("epochs", "best_epoch"):  # by which the history is read
        values = fields[name]
        if values is not None and not ((values >= 0) & (values <= len(fields["history"]["epoch"]))).all():
            raise held.wrong(f"{name} is {reprlib.repr(values.tolist())}, expected epochs of the history")
    nets, of = held.networks(own)
    fields["net"] = nets[0] if of is None else tuple(nets[i] for i in of)
    for which in PARAMS:
        fields[which] = held.params(which, nets[0], stacked=True) if of is None else [
            held.params(f"{which}[{i}]", nets[number]) for i, number in enumerate(of)]  # fmt: skip
    if tensors:
        raise held.wrong(f"it has {min(tensors)}, expected none of that name")
    if type(about.get("preprocess")) is not bool:
        raise held.wrong(f"preprocess is {reprlib.repr(about.get('preprocess'))}, expected whether there was one")
    fields["preprocess"] = unknown_preprocess if about["preprocess"] else None
    return fields


class _Held:
    """What a file holds. Every part is checked when it is taken, since a wrong file may have a right checksum."""

    def __init__(self, path: FilePath, tensors: dict[str, np.ndarray], about: dict[str, Any]):
        self.path, self.tensors, self.about = path, tensors, about
        scores = tensors.get("scores")
        if scores is None or scores.ndim != 1 or not len(scores):
            raise self.wrong("it has no scores of members")
        self.E = len(scores)

    def wrong(self, why: str) -> ValueError:
        """The error for a file that is no population."""
        return ValueError(f"{self.path} describes no population: {why}")

    def take(self, name: str, kind: str, E: bool = False, ndim: tuple[int, ...] = (1,)) -> np.ndarray:
        """The array of this name, of NumPy's kinds; with `E`, one entry for each member."""
        array = self.tensors.pop(name, None)
        if array is None:
            raise self.wrong(f"it has no {name}")
        kind_of = "f" if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype.kind  # bfloat16 is "V" to NumPy
        if array.ndim not in ndim or kind_of not in kind or (E and len(array) != self.E):
            raise self.wrong(f"{name} is {array.dtype} {array.shape}, beside {self.E} members")
        return array

    def names(self, what: str) -> list[str]:
        """The names in a part of the description, each once."""
        names = self.about.get(what)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.wrong(f"{what} is {reprlib.repr(names)}, expected names")
        return list(dict.fromkeys(names))

    def history(self) -> dict[str, np.ndarray]:
        """The columns: `epoch (n,)`, the others `(n, E)`."""
        columns = {name: self.take(f"history.{name}", "f" if name != "epoch" else "iu", ndim=(1, 2))
                   for name in self.names("history")}  # fmt: skip
        n = columns["epoch"].shape if "epoch" in columns else ()
        if len(n) != 1 or "cost" not in columns:
            raise self.wrong("its history has no epoch or no cost")
        for name, column in columns.items():
            if name != "epoch" and column.shape != (*n, self.E):
                raise self.wrong(f"history.{name} has shape {column.shape}, expected {(*n, self.E)}")
        return columns

    def settings(self) -> dict[str, np.ndarray]:
        """What members differ in; texts are in the description."""
        texts, settings = self.about.get("texts"), {}
        if not isinstance(texts, dict):
            raise self.wrong(f"texts is {reprlib.repr(texts)}, expected a dict")
        for name in self.names("settings"):
            given = texts.get(name)
            if given is None:
                settings[name] = self.take(f"settings.{name}", "fiu", E=True, ndim=(1, 2))
            elif isinstance(given, list) and len(given) == self.E and all(isinstance(text, str) for text in given):
                settings[name] = np.asarray(given)
            else:
                raise self.wrong(f"{name} is {reprlib.repr(given)}, expected a text for each of {self.E} members")
        return settings

    def networks(self, own: Sequence[Activation | Loss]) -> tuple[list[MLP], list[int] | None]:
        """The distinct networks, and the number of each member's among them; None where all share one."""
        given, of = self.about.get("nets"), self.about.get("net of each")
        if not isinstance(given, list) or not given or (of is None and len(given) > 1):
            raise self.wrong(f"nets is {reprlib.repr(given)}, expected networks")
        listed = isinstance(of, list) and len(of) == self.E and all(type(i) is int for i in of)
        if of is not None and not (listed and set(of) == set(range(len(given)))):
            raise self.wrong(f"net of each is {reprlib.repr(of)}, expected the number of a network for each member")
        places = ["params"] if of is None else [f"params[{of.index(i)}]" for i in range(len(given))]
        first = 1 if of is None else 0  # the member axis
        shapes = lambda place: {name.removeprefix(f"{place}."): array.shape[first:]
                                for name, array in self.tensors.items() if name.startswith(f"{place}.")}  # fmt: skip
        return [files.build(f, shapes(p), own, self.path) for f, p in zip(given, places, strict=True)], of

    def params(self, start: str, net: MLP, stacked: bool = False) -> Params:
        """Parameters that fit the network, with a member axis in front where they are stacked."""
        pair = lambda l: [self.take(f"{start}.{name}{l}", "f", E=stacked, ndim=(n + stacked,))
                          for name, n in (("W", 2), ("b", 1))]  # fmt: skip
        arrays: list[Any] = [pair(l) for l in range(1, net.depth + 1)]
        try:
            validate.params(net, tuple(Layer(*(a[0] if stacked else a for a in layer)) for layer in arrays))
        except ValueError as error:
            raise self.wrong(f"{start}: {error}") from None
        to_jax = lambda array: files.to_jax(array, f"{self.path}: {start}")
        return tuple(Layer(*map(to_jax, layer)) for layer in arrays)
