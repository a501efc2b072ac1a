"""Where training lies on a mesh of devices: examples along `data`, wide layers along `model`, members along `member`.

Constraints on the batch and on the state are all there is to it: XLA divides the work by them and adds the sums over
devices; one device is a mesh of one. Sources: the documentation of `jax.sharding`; for layers divided in pairs, the
first by rows and the second by columns, Shoeybi et al. 2019, "Megatron-LM", section 3.
"""

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmlp import trees
from jaxmlp.network import MLP, Layer
from jaxmlp.training.sampling import Batch
from jaxmlp.training.state import Data, Plan, TrainState

DATA, MODEL, MEMBER = "data", "model", "member"


def checked(mesh: Any, net: MLP, axes: tuple[str, ...]) -> Mesh | None:
    """`mesh`, if its axes are among `axes` and a `model` axis divides some layer."""
    if mesh is None:
        return None
    expected = (
        f"expected a jax.sharding.Mesh with axes among {', '.join(axes)}, such as jax.make_mesh((8,), ({axes[0]!r},))"
    )
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {mesh!r}, {expected}")
    if not set(mesh.axis_names) <= set(axes):
        raise ValueError(f"mesh has the axes {', '.join(mesh.axis_names)}, {expected}")
    if length(mesh, MODEL) > 1 and not any(_divided(net, mesh, l) for l in range(1, net.depth)):
        odd = ", ".join(str(n) for n in net.sizes[1:-1:2]) or "none"
        raise ValueError(
            f"mesh's model axis has {length(mesh, MODEL)} devices, which divide the width of none of the hidden layers "
            f"1, 3, ... ({odd}); expected one that they divide"
        )
    return Mesh(mesh.devices, mesh.axis_names)  # whatever its axes' types: XLA finds what the constraints leave open


def length(mesh: Mesh | None, axis: str) -> int:
    """The number of devices along `axis`; 1 where there is no such axis."""
    return 1 if mesh is None else mesh.shape.get(axis, 1)


def _divided(net: MLP, mesh: Mesh, l: int) -> bool:
    """Whether hidden layer l's units are divided along `model`: every other layer's, where the axis divides them."""
    n = length(mesh, MODEL)
    return l % 2 == 1 and l < net.depth and n > 1 and net.sizes[l] % n == 0


def layers(net: MLP, mesh: Mesh) -> tuple[Any, ...]:
    """Where each layer's W and b lie: by rows below a divided layer of units, by columns above it, else everywhere."""
    along = lambda l: MODEL if _divided(net, mesh, l) else None
    at = lambda *axes: NamedSharding(mesh, P(*axes))
    return tuple(Layer(at(along(l), along(l - 1)), at(along(l))) for l in range(1, net.depth + 1))  # pyright: ignore[reportArgumentType]


def laid_out(plan: Plan, state: TrainState) -> TrainState:
    """All that has the parameters' structure where they lie, everything else on every device."""
    mesh = plan.mesh
    if mesh is None:
        return state
    everywhere, like_params = NamedSharding(mesh, P()), layers(plan.net, mesh)
    of_optimizer = optax.tree_map_params(
        plan.transformation(state.hyper), lambda _, at: at, state.opt_state, like_params,
        transform_non_params=lambda _: everywhere,
    )  # fmt: skip
    at = jax.tree.map(lambda _: everywhere, state)._replace(params=like_params, opt_state=of_optimizer)
    if state.best is not None:
        at = at._replace(best=at.best._replace(params=like_params))
    if state.average is not None:
        at = at._replace(average=at.average._replace(total=like_params))
    return jax.lax.with_sharding_constraint(state, at)


def along(mesh: Mesh | None, axis: str, tree: Any) -> Any:
    """The leading axis of each array divided along `axis`; an array that it does not divide lies on every device."""
    n = length(mesh, axis)
    if mesh is None or n == 1:
        return tree
    divided = lambda array: NamedSharding(mesh, P(axis) if array.shape[0] % n == 0 else P())
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(divided, tree))


def divided(mesh: Mesh | None, batch: Batch) -> Batch:
    """A batch with its examples along `data`."""
    X, Y, weights = along(mesh, DATA, (batch.X, batch.Y, batch.weights))
    return batch._replace(X=X, Y=Y, weights=weights)


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """The whole of each array on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def placed(mesh: Mesh | None, tree: Any, *axes: str | None) -> Any:
    """Arrays on the mesh, everywhere or with dimensions along `axes`; of several processes each gives its part."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, P(*axes))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(array):
        if trees.is_key(array):
            data = put(jax.random.key_data(array))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
        return jax.make_array_from_process_local_data(sharding, jax.device_get(array))

    return jax.tree.map(put, tree)


def placed_data(mesh: Mesh | None, data: Data, by_share: bool = False) -> Data:
    """Training examples everywhere, or each share of them where its batches are; validation examples everywhere."""
    training = placed(mesh, (data.X, data.Y, data.weights), *([DATA] if by_share else []))
    return Data(*training, *placed(mesh, (data.X_dev, data.Y_dev, data.weights_dev)))


def placed_like(mesh: Mesh | None, like: Any, tree: Any) -> Any:
    """Whole arrays, on every process alike, laid out as those of `like` are on the mesh."""
    if mesh is None:
        return tree

    def put(leaf, array):
        if trees.is_key(array):
            impl = jax.random.key_impl(array)
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf), jax.random.key_data(array)), impl=impl)
        whole = jax.device_get(array)
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: whole[index])

    return jax.tree.map(put, like, tree)
