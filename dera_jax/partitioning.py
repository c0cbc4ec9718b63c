"""Meshes, and which axis of an array lies along which axis of the mesh.

A run works on one mesh, ('data', 'model'), of one device too: `use` makes it the mesh of every program
compiled within, as `jax.set_mesh` does. Axes have logical names, which rules map to axes of the mesh: of
parameters `place` looks at them, of activations and caches `constrain`, in the models, at the places
named there. What comes out of a step lies where it lay before, see `partition`.

The rules are T5X's standard ones: `model` splits vocabulary, heads and feed-forward, `data` the batch;
everything else is on every device. `FULLY_SHARDED` also splits what has an axis `embed` over `data`.
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
RULES = (
    ("batch", DATA),
    ("vocab", MODEL),
    ("mlp", MODEL),
    ("heads", MODEL),
    ("kv_heads", MODEL),
    ("joined_kv", MODEL),
    ("embed", None),
)
FULLY_SHARDED = (("embed", DATA),)  # before them

_rules: Rules = RULES  # of the mesh in use


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """Devices of all processes as ('data', 'model').

    Args:
        data: devices along the first axis; None for all that `model` leaves.
        model: devices along the second.

    Raises:
        ValueError: there are not so many devices, or they cannot be divided so.
    """
    devices = jax.devices()
    model = checks.check("the mesh's devices along 'model'", model, checks.whole(1))
    if data is None and len(devices) % model:
        raise ValueError(
            f"a mesh of {model} devices along 'model' does not fit {len(devices)} devices"
        )
    data = len(devices) // model if data is None else data
    data = checks.check("the mesh's devices along 'data'", data, checks.whole(1))
    if data * model > len(devices):
        raise ValueError(
            f"a mesh of {data} devices along 'data' and {model} along 'model' needs {data * model} "
            f"devices; there are {len(devices)}"
        )
    return _mesh(devices[: data * model], data, model)


def _mesh(devices: Sequence[jax.Device], data: int, model: int) -> Mesh:
    # jax's own default asks every operation where its result goes.
    automatic = (AxisType.Auto,) * 2
    return jax.make_mesh((data, model), (DATA, MODEL), automatic, devices=devices)


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules = ()) -> Iterator[None]:
    """Runs what is within on this mesh.

    Args:
        mesh: of `make_mesh`.
        rules: pairs of a logical name and an axis of the mesh (None: of none), before `RULES`: of the
            rules for a name the first holds.

    Raises:
        ValueError: a rule that is none, or for a name that nothing has.
    """
    global _rules
    before, _rules = _rules, (*_checked(rules), *RULES)
    if _rules != before:
        jax.clear_caches()  # programs are found again by their mesh, not by these rules
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        if _rules != before:
            jax.clear_caches()
        _rules = before


def mesh_in_use() -> Mesh:
    """The mesh of `use`, or one of the default device."""
    mesh = jax.sharding.get_mesh()
    return mesh if not mesh.empty else _mesh(jax.local_devices()[:1], 1, 1)


class Network(Protocol):
    """What says of its parameters how they may be split."""

    units: Mapping[str, int]

    def param_axes(self) -> Mapping[str, Axes]:
        """See `models.language_model.TrainableModel`, for both."""


def place(network: Network, params: PyTree) -> PyTree:
    """A network's parameters where the mesh in use has them.

    Raises:
        ValueError: as `param_shardings`.
    """
    shapes = {_name(path): x.shape for path, x in jax.tree.leaves_with_path(params)}
    where = param_shardings(network, shapes)
    put = lambda path, x: jax.device_put(x, where[_name(path)])
    return jax.tree.map_with_path(put, params)


def param_shardings(
    network: Network, shapes: Mapping[str, Sequence[int]]
) -> dict[str, NamedSharding]:
    """Where each parameter goes on the mesh in use, by its path joined by '/'.

    What `model` does not divide is on all devices along it: keys and values of few heads, and with a
    warning everything else. Heads are never cut.

    Args:
        network: whose parameters.
        shapes: of each.

    Raises:
        ValueError: a rule splits an axis over `data`, which does not divide it; naming the parameter.
    """
    mesh, axes = mesh_in_use(), network.param_axes()
    return {
        path: NamedSharding(mesh, _param_spec(mesh, path, shape, axes[path], network.units))
        for path, shape in shapes.items()
    }


def constrain(x: Array, *axes: str | None) -> Array:
    """The same array within a compiled program, lying on the mesh in use by its logical axes.

    What the mesh does not divide, and arrays without a mesh, stay as they are.
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
            f"{x.shape[along.index(DATA)]} rows are not divided among the {mesh.shape[DATA]} devices "
            "along 'data', which do not divide them: each works on all rows; take another batch size"
        )
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k` of x[B, ...] whose rows lie along the mesh in use.

    Each device looks at its own: XLA would bring the rows of all devices to each of them.
    """
    mesh, largest = jax.sharding.get_abstract_mesh(), lambda rows: jax.lax.top_k(rows, k)
    devices = 1 if mesh.empty else mesh.shape.get(DATA, 1)
    if devices == 1 or x.shape[0] % devices:
        return largest(x)
    rows = PartitionSpec(DATA)
    return jax.shard_map(largest, in_specs=rows, out_specs=rows, axis_names={DATA})(x)


def partition(step: Callable, state: PyTree, mesh: Mesh) -> Callable:
    """Compiles step(state, frozen, batch, key) -> (state, metrics).

    The state's arrays stay where they are, and are donated; what is frozen and the batch are taken where
    they lie (`place`, `global_batch`) and never donated; metrics are on every device.

    Args:
        step: a pure function.
        state: the first one, placed; or shapes.
        mesh: where all of it lies.
    """
    where = jax.tree.map(lambda x: x.sharding, state)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(where, everywhere))


def global_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Arrays whose rows lie along `data`, from the rows of each process; texts are left alone.

    Raises:
        ValueError: the mesh does not divide the batch, or not into as many rows for each process, in the
            order of the processes.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA))
    _check_processes(mesh)

    def put(x):
        if not isinstance(x, np.ndarray | Array) or x.dtype == object:
            return x
        rows, devices = len(x) * jax.process_count(), mesh.shape[DATA]
        if rows % devices:
            raise ValueError(
                f"a batch of {rows} rows cannot be divided among the {devices} devices along 'data' "
                "of MESH; set the batch size to a multiple"
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, batch)


def _check_processes(mesh: Mesh) -> None:
    """Raises ValueError unless `data` is cut between the processes in their order."""
    count = jax.process_count()
    if count == 1:
        return
    rows = [sorted({device.process_index for device in row}) for row in mesh.devices]
    share = len(rows) // count
    if len(rows) % count or rows != [[i // share] for i in range(len(rows))]:
        raise ValueError(
            f"MESH has {len(rows)} devices along 'data', of the processes {rows}: batches are made of an equal "
            f"part of each of the {count} processes, one after the other; take a mesh that 'data' cuts so"
        )


def beside(params: PyTree, state: PyTree) -> PyTree:
    """Where an optimizer's state goes, or shapes of it: each array beside the parameter that it is of.

    Adafactor's averages over an axis lie as what is left of the parameter's axes. None for parameters that
    no mesh holds, and for shapes.
    """
    known = dict(jax.tree.leaves_with_path(params))
    arrays = [x for x in known.values() if isinstance(x, Array) and not isinstance(x, Tracer)]
    held = (x.sharding.mesh for x in arrays if isinstance(x.sharding, NamedSharding))
    mesh = next(held, None)
    if mesh is None:
        return None

    def sharding(path, x) -> NamedSharding:
        for start in range(len(path)):
            if (param := known.get(path[start:])) is not None:
                return NamedSharding(mesh, _part_of(param, x.shape))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map_with_path(sharding, state)


def to_host(tree: PyTree) -> PyTree:
    """NumPy arrays of arrays that lie over the devices of several processes, on each of them."""
    whole = lambda x: (
        x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
    )
    return jax.tree.map(lambda x: np.asarray(whole(x)) if isinstance(x, Array) else x, tree)


def is_writer() -> bool:
    """Whether this process writes what all of them have: metrics, models, figures."""
    return jax.process_index() == 0


def once(write: Callable[[], None]) -> None:
    """Lets one process write, and the others wait until it has."""
    if is_writer():
        write()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dera_jax: written")


def _along(axes: Axes, mesh: Mesh | AbstractMesh) -> list[str | None]:
    """The axis of the mesh for each logical axis; each is used once, for the first that asks."""
    found: list[str | None] = []
    for name in axes:
        mesh_axis = next((along for known, along in _rules if known == name), None)
        free = mesh_axis in mesh.shape and mesh_axis not in found
        found.append(mesh_axis if free else None)
    return found


def _param_spec(
    mesh: Mesh, path: str, shape: Sequence[int], axes: Axes, units: Mapping[str, int]
) -> PartitionSpec:
    """Of one parameter, see `param_shardings`."""
    parts = []
    for size, name, along in zip(shape, axes, _along(axes, mesh), strict=True):
        pieces, devices = size // units.get(name, 1), mesh.shape.get(along, 1)
        if pieces % devices == 0:
            parts.append(along)
            continue
        said = f"{path} {tuple(shape)}: {name!r} has {pieces} parts, which"
        if along == DATA:
            raise ValueError(
                f"{said} the {devices} devices along 'data' do not divide; take a mesh that does, or "
                "rules that do not split it"
            )
        if name != "kv_heads":
            warn_once(
                f"{said} the {devices} devices along {along!r} do not divide: it is on all of them "
                "whole, and so is every parameter like it",
                about=(name, pieces, devices),
            )
        parts.append(None)
    return PartitionSpec(*parts)


def _part_of(param: Array, shape: Sequence[int]) -> PartitionSpec:
    """Where an array goes that an optimizer keeps for a parameter."""
    spec = (*param.sharding.spec, *[None] * param.ndim)[: param.ndim]
    for gone in (None, *reversed(range(param.ndim))):
        left = [i for i in range(param.ndim) if i != gone]
        if tuple(param.shape[i] for i in left) == tuple(shape):
            return PartitionSpec(*[spec[i] for i in left])
    return PartitionSpec()


def _name(path: tuple) -> str:
    """Of a leaf, joined by '/'; that of an array alone is empty."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _checked(rules: Rules) -> Rules:
    """Raises ValueError, see `use`."""
    known = {name for name, _ in RULES if name != "batch"}  # rows lie along data
    for rule in rules:
        pair = isinstance(rule, Sequence) and not isinstance(rule, str) and len(rule) == 2
        if not (pair and rule[0] in known and rule[1] in (DATA, MODEL, None)):
            raise ValueError(
                f"a rule is a logical axis ({', '.join(sorted(known))}) and an axis of the mesh "
                f"('data', 'model' or None), such as ('embed', 'data'); found {rule!r}"
            )
    return tuple(map(tuple, rules))
