"""Device meshes, and the rules that shard the axes of arrays along the axes of a mesh.

A run uses one mesh with axes ('data', 'model'), even on one device. `use_mesh` makes it the mesh of all
programs compiled within, as `jax.set_mesh` does. Array axes have logical names, which rules map to
mesh axes: `shard_params` shards parameters by them, and the models call `constrain` to shard activations
and caches. The new state of a training step is sharded like the old one, see `partition`.

The default rules are those of T5X: vocabulary, heads and feed-forward are split over 'model', the
batch over 'data', and all other axes are replicated. With `FULLY_SHARDED`, parameters with an axis
'embed' are also split over 'data'.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dera_jax import checks
from dera_jax.log import warn_once

PyTree = object
Axes = Sequence[str | None]
Rules = Sequence[tuple[str, str | None]]

DATA, MODEL = "data", "model"
LORA_A, LORA_B = "lora_a", "lora_b"  # factors of LoRA adapters, which are small and never split
RULES = (
    ("batch", DATA),
    ("vocab", MODEL),
    ("mlp", MODEL),
    ("heads", MODEL),
    ("kv_heads", MODEL),
    ("joined_kv", MODEL),
    ("embed", None),
)
FULLY_SHARDED = (("embed", DATA),)  # for `use_mesh`, which puts it before RULES

_rules: Rules = RULES  # rules of the mesh in use


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """Returns a mesh ('data', 'model') over devices of all processes.

    Args:
        data: number of devices along 'data'; None for all devices divided by `model`.
        model: number of devices along 'model'.

    Raises:
        ValueError: there are too few devices, or `data` is None and `model` does not divide their
            number.
    """
    devices = jax.devices()
    model = checks.check("the mesh's devices along 'model'", model, checks.integer(1))
    if data is None and len(devices) % model:
        raise ValueError(
            f"a mesh of {model} devices along 'model' does not fit {len(devices)} devices; choose "
            "a divisor of that number, or give the number of devices along 'data' too"
        )
    data = len(devices) // model if data is None else data
    data = checks.check("the mesh's devices along 'data'", data, checks.integer(1))
    if data * model > len(devices):
        raise ValueError(
            f"a mesh of {data} devices along 'data' and {model} along 'model' needs {data * model} "
            f"devices; there are {len(devices)}; choose a smaller mesh"
        )
    return _mesh(devices[: data * model], data, model)


def _mesh(devices: Sequence[jax.Device], data: int, model: int) -> Mesh:
    # JAX's default, explicit axes, requires operations to state the sharding of ambiguous results.
    automatic = (AxisType.Auto,) * 2
    return jax.make_mesh((data, model), (DATA, MODEL), automatic, devices=devices)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = ()) -> Iterator[None]:
    """Context manager that makes a mesh and sharding rules the ones in use.

    Args:
        mesh: a mesh of `make_mesh`.
        rules: pairs of a logical axis and a mesh axis, or None for no mesh axis. They precede
            `RULES`, and the first rule for a logical axis holds.

    Raises:
        ValueError: a rule is not such a pair, or its logical or mesh axis does not exist.
    """
    global _rules
    before, _rules = _rules, (*_checked(rules), *RULES)
    if _rules != before:
        jax.clear_caches()  # the key of a cached program has the mesh, but not the rules
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        if _rules != before:
            jax.clear_caches()
        _rules = before


def mesh_in_use() -> Mesh:
    """Returns the mesh of `use_mesh`; outside of `use_mesh`, a mesh of the first local device."""
    mesh = jax.sharding.get_mesh()
    return mesh if not mesh.empty else _mesh(jax.local_devices()[:1], 1, 1)


class Network(Protocol):
    """Interface of a model whose parameters are sharded, see `language_model.TrainableModel`."""

    block_sizes: Mapping[str, int]

    def param_axes(self) -> Mapping[str, Axes]:
        """Returns the logical axes of every parameter by its path, joined by '/'."""


def shard_params(network: Network, params: PyTree) -> PyTree:
    """Shards a network's parameters on the mesh in use, and returns them.

    Raises:
        ValueError: as `param_shardings`.
    """
    shapes = {_name(path): x.shape for path, x in jax.tree.leaves_with_path(params)}
    shardings = param_shardings(network, shapes)
    put = lambda path, x: jax.device_put(x, shardings[_name(path)])
    return jax.tree.map_with_path(put, params)


def param_shardings(
    network: Network, shapes: Mapping[str, Sequence[int]]
) -> dict[str, NamedSharding]:
    """Returns the sharding of each parameter on the mesh in use, by its path joined by '/'.

    A parameter axis that the devices along 'model' do not divide is replicated, with a warning
    except for key and value heads. The factors of LoRA adapters are replicated. Blocks of the sizes `network.block_sizes`, such as heads, stay whole.

    Args:
        network: the model.
        shapes: the shape of each parameter, by the same paths.

    Raises:
        ValueError: a rule splits an axis over 'data', whose devices do not divide it; the message
            names the parameter.
    """
    mesh, axes = mesh_in_use(), network.param_axes()

    def axes_of(path: str, shape: Sequence[int]) -> Axes:
        is_factor = path.rpartition("/")[2] in (LORA_A, LORA_B)
        return (None,) * len(shape) if is_factor else axes[path]

    return {
        path: NamedSharding(
            mesh, _param_spec(mesh, path, shape, axes_of(path, shape), network.block_sizes)
        )
        for path, shape in shapes.items()
    }


def constrain(x: Array, *axes: str | None) -> Array:
    """Constrains the sharding of an array in a compiled program, by its logical axes.

    Axes that the mesh in use does not divide are replicated, for a batch with a warning. Without a
    mesh, or on one device, the array is returned unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    along = _along(axes, mesh)
    parts = [
        name if size % mesh.shape.get(name, 1) == 0 else None
        for name, size in zip(along, x.shape, strict=True)
    ]
    if DATA in along and DATA not in parts and x.shape[along.index(DATA)] > 1:
        warn_once(
            f"{x.shape[along.index(DATA)]} rows of a batch cannot be divided among the "
            f"{mesh.shape[DATA]} devices along 'data': each device computes all rows; choose a "
            f"batch size that is a multiple of {mesh.shape[DATA]}"
        )
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """Computes `lax.top_k` of x[B, ...], whose first axis is sharded along 'data'.

    Each device processes its own rows; otherwise XLA would gather all rows on every device.
    """
    mesh, local_top_k = jax.sharding.get_abstract_mesh(), lambda rows: jax.lax.top_k(rows, k)
    devices = 1 if mesh.empty else mesh.shape.get(DATA, 1)
    if devices == 1 or x.shape[0] % devices:
        return local_top_k(x)
    rows = PartitionSpec(DATA)
    return jax.shard_map(local_top_k, in_specs=rows, out_specs=rows, axis_names={DATA})(x)


def partition(step: Callable, state: PyTree, mesh: Mesh) -> Callable:
    """Compiles a training step(state, frozen, batch, key) -> (state, metrics).

    The new state is sharded like `state`, and the old one is donated. The frozen parameters and the
    batch keep their shardings (of `shard_params` and `global_batch`) and are never donated. Metrics are
    replicated.

    Args:
        step: a pure function.
        state: the initial state, with the shardings of its arrays; or its shapes with shardings.
        mesh: the mesh of all arrays.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))


def global_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Makes global arrays, sharded along 'data', of each process's rows [B / processes, ...].

    Leaves that are not arrays, and arrays of objects such as strings, are returned unchanged.

    Raises:
        ValueError: the devices along 'data' do not divide the batch, or the mesh does not give each
            process an equal part of it, in the order of the processes.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA))
    _check_processes(mesh)

    def put(x):
        if not isinstance(x, np.ndarray | Array) or x.dtype == object:
            return x
        rows, devices = len(x) * jax.process_count(), mesh.shape[DATA]
        if rows % devices:
            raise ValueError(
                f"a batch of {rows} rows cannot be divided among the {devices} devices along "
                f"'data' of MESH; set the batch size to a multiple of {devices}"
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, batch)


def _check_processes(mesh: Mesh) -> None:
    """Raises ValueError unless each process has an equal part of 'data', in order of processes."""
    count = jax.process_count()
    if count == 1:
        return
    owners = [sorted({device.process_index for device in row}) for row in mesh.devices]
    per_process = len(owners) // count
    if len(owners) % count or owners != [[i // per_process] for i in range(len(owners))]:
        raise ValueError(
            f"MESH has {len(owners)} devices along 'data', of the processes {owners}; each of the "
            f"{count} processes must have an equal, contiguous part of 'data', in the order of the "
            "processes: choose a MESH of all devices that splits processes along 'data' only"
        )


def optimizer_shardings(params: PyTree, state: PyTree) -> PyTree:
    """Returns shardings of an optimizer's state: each array is sharded like its parameter.

    Adafactor's averages over an axis are sharded like the remaining axes of the parameter. Arrays
    without a parameter are replicated.

    Args:
        params: sharded parameters; for traced ones, shapes, and arrays on no mesh returns None.
        state: the optimizer's state, or its shapes.
    """
    by_path = dict(jax.tree.leaves_with_path(params))
    arrays = [x for x in by_path.values() if isinstance(x, Array) and not isinstance(x, Tracer)]
    meshes = (x.sharding.mesh for x in arrays if isinstance(x.sharding, NamedSharding))
    mesh = next(meshes, None)
    if mesh is None:
        return None

    def sharding(path, x) -> NamedSharding:
        for start in range(len(path)):
            if (param := by_path.get(path[start:])) is not None:
                return NamedSharding(mesh, _part_of(param, x.shape))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map_with_path(sharding, state)


def to_host(tree: PyTree) -> PyTree:
    """Copies arrays to NumPy, whole on each process even if several processes hold their shards."""
    whole = lambda x: (
        x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
    )
    return jax.tree.map(lambda x: np.asarray(whole(x)) if isinstance(x, Array) else x, tree)


def is_writer() -> bool:
    """Returns whether this process writes the outputs of a run: metrics, models, figures."""
    return jax.process_index() == 0


def write_once(write: Callable[[], None]) -> None:
    """Calls `write` on one process, while the other processes wait for it."""
    if is_writer():
        write()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dera_jax: written")


def _along(axes: Axes, mesh: Mesh | AbstractMesh) -> list[str | None]:
    """Maps logical axes to mesh axes; a mesh axis is used once, for the first that maps to it."""
    mesh_axes: list[str | None] = []
    for name in axes:
        mesh_axis = next((along for logical, along in _rules if logical == name), None)
        is_free = mesh_axis in mesh.shape and mesh_axis not in mesh_axes
        mesh_axes.append(mesh_axis if is_free else None)
    return mesh_axes


def _param_spec(
    mesh: Mesh, path: str, shape: Sequence[int], axes: Axes, block_sizes: Mapping[str, int]
) -> PartitionSpec:
    """Returns the partition of one parameter, see `param_shardings`."""
    parts = []
    for size, name, along in zip(shape, axes, _along(axes, mesh), strict=True):
        pieces, devices = size // block_sizes.get(name, 1), mesh.shape.get(along, 1)
        if pieces % devices == 0:
            parts.append(along)
            continue
        problem = (
            f"the parameter {path} of shape {tuple(shape)}: its axis {name!r} has {pieces} parts, "
            f"which the {devices} devices along {along!r} do not divide"
        )
        if along == DATA:
            raise ValueError(
                f"{problem}; choose a MESH that divides it, or RULES that do not split it so"
            )
        if name != "kv_heads":
            warn_once(
                f"{problem}: it is replicated on all of them, as are all parameters like it",
                about=(name, pieces, devices),
            )
        parts.append(None)
    return PartitionSpec(*parts)


def _part_of(param: Array, shape: Sequence[int]) -> PartitionSpec:
    """Returns the partition of an optimizer's array of this shape for a parameter."""
    spec = (*param.sharding.spec, *[None] * param.ndim)[: param.ndim]
    for averaged in (None, *reversed(range(param.ndim))):
        axes = [i for i in range(param.ndim) if i != averaged]
        if tuple(param.shape[i] for i in axes) == tuple(shape):
            return PartitionSpec(*[spec[i] for i in axes])
    return PartitionSpec()


def _name(path: tuple) -> str:
    """Returns the path of a leaf, joined by '/'; it is empty for a single array."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _checked(rules: Rules) -> Rules:
    """Validates rules, see `use_mesh`, and returns them as tuples."""
    known = {name for name, _ in RULES if name != "batch"}  # the batch is always split over 'data'
    for rule in rules:
        pair = isinstance(rule, Sequence) and not isinstance(rule, str) and len(rule) == 2
        if not (pair and rule[0] in known and rule[1] in (DATA, MODEL, None)):
            raise ValueError(
                f"a rule is a logical axis ({', '.join(sorted(known))}) and an axis of the mesh "
                f"('data', 'model' or None), such as ('embed', 'data'); found {rule!r} in RULES"
            )
    return tuple(map(tuple, rules))
