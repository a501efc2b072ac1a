"""Where training lies on a mesh of devices: examples along `data`, wide layers along `model`, members along `member`.

The code only constrains where the batch and the state lie. XLA divides the work accordingly and adds the sums over the
devices; one device is a mesh of one. Sources: the documentation of `jax.sharding`; Shoeybi et al. 2019, "Megatron-LM",
section 3, for layers divided in pairs, the first by rows and the second by columns.
"""

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmlp import trees
from jaxmlp.network import MLP, Layer
from jaxmlp.training.state import Data, Plan, TrainState

DATA, MODEL, MEMBER = "data", "model", "member"


def check(mesh: Any, net: MLP, axes: tuple[str, ...]) -> Mesh | None:
    """Returns `mesh` if its axes are among `axes` and a `model` axis divides some layer."""
    if mesh is None:
        return None
    expected = (
        f"expected a jax.sharding.Mesh with axes among {', '.join(axes)}, such as jax.make_mesh((8,), ({axes[0]!r},))"
    )
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {mesh!r}, {expected}")
    if not set(mesh.axis_names) <= set(axes):
        raise ValueError(f"mesh has the axes {', '.join(mesh.axis_names)}, {expected}")
    if length(mesh, MODEL) > 1 and not any(_is_divided(net, mesh, l) for l in range(1, net.depth)):
        odd = ", ".join(str(n) for n in net.sizes[1:-1:2]) or "none"
        raise ValueError(
            f"mesh's model axis has {length(mesh, MODEL)} devices, which divide the width of no hidden layer 1, 3, ... "
            f"({odd}); expected one that they divide"
        )
    return Mesh(mesh.devices, mesh.axis_names)  # of automatic axes: XLA decides where the constraints are silent


def length(mesh: Mesh | None, axis: str) -> int:
    """The number of devices along `axis`; 1 where there is no such axis."""
    return 1 if mesh is None else mesh.shape.get(axis, 1)


def _is_divided(net: MLP, mesh: Mesh, l: int) -> bool:
    """Whether `model` divides hidden layer l's units: it does in every other layer, where their number allows."""
    n = length(mesh, MODEL)
    return l % 2 == 1 and l < net.depth and n > 1 and net.sizes[l] % n == 0


def layers(net: MLP, mesh: Mesh) -> tuple[Any, ...]:
    """Where each W and b lie: W's rows with the units of its layer, W's columns with those of the layer below."""
    along = lambda l: MODEL if _is_divided(net, mesh, l) else None
    at = lambda *axes: NamedSharding(mesh, P(*axes))
    return tuple(Layer(at(along(l), along(l - 1)), at(along(l))) for l in range(1, net.depth + 1))  # pyright: ignore[reportArgumentType]


def place_state(plan: Plan, state: TrainState) -> TrainState:
    """The state on the mesh: each array with the parameters' structure lies as they do, the rest on every device."""
    mesh = plan.mesh
    if mesh is None:
        return state
    whole, like_params = NamedSharding(mesh, P()), layers(plan.net, mesh)
    of_optimizer = optax.tree_map_params(
        plan.transformation(state.hyper), lambda _, at: at, state.opt_state, like_params,
        transform_non_params=lambda _: whole,
    )  # fmt: skip
    at = jax.tree.map(lambda _: whole, state)._replace(params=like_params, opt_state=of_optimizer)
    if state.best is not None:
        at = at._replace(best=at.best._replace(params=like_params))
    if state.average is not None:
        at = at._replace(average=at.average._replace(total=like_params))
    return jax.lax.with_sharding_constraint(state, at)


def along(mesh: Mesh | None, axis: str, tree: Any) -> Any:
    """Divides each array's leading axis along `axis`; an array that the axis does not divide lies on every device."""
    n = length(mesh, axis)
    if mesh is None or n == 1:
        return tree
    at = lambda array: NamedSharding(mesh, P(axis) if array.shape[0] % n == 0 else P())
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(at, tree))


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """The whole of each array on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def put(mesh: Mesh | None, tree: Any, *axes: str | None) -> Any:
    """Puts arrays on the mesh, their dimensions along `axes`; with several processes, each passes its own part."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, P(*axes))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def one(array):
        if trees.is_key(array):
            return jax.random.wrap_key_data(one(jax.random.key_data(array)), impl=jax.random.key_impl(array))
        return jax.make_array_from_process_local_data(sharding, jax.device_get(array))

    return jax.tree.map(one, tree)


def put_data(mesh: Mesh | None, data: Data, by_share: bool = False) -> Data:
    """Puts the examples on every device or, `by_share`, each training example where its batches are."""
    if mesh is None:
        return data
    training = put(mesh, (data.X, data.Y, data.weights), *([DATA] if by_share else []))
    return Data(*training, *put(mesh, (data.X_dev, data.Y_dev, data.weights_dev)))


def put_like(mesh: Mesh | None, like: Any, tree: Any) -> Any:
    """Puts arrays, the same on every process, on the mesh as those of `like` lie."""
    if mesh is None:
        return tree

    def one(leaf, array):
        if trees.is_key(array):
            impl = jax.random.key_impl(array)
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf), jax.random.key_data(array)), impl=impl)
        whole = jax.device_get(array)
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: whole[index])

    return jax.tree.map(one, like, tree)
