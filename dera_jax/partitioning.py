"""Meshes, and which axis of which parameter lies along which axis of the mesh.

The rules are T5X's standard ones: `model` splits vocabulary, heads and feed-forward, `data` the
batch; everything else is on every device.
"""

import flax.traverse_util
import jax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding

from dera_jax.models.language_model import TrainableModel

RULES = (
    ("batch", "data"),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("kv_heads", None),
    ("kv", None),
    ("embed", None),
    ("relpos_buckets", None),
)


def make_mesh(model: int = 1) -> Mesh:
    """All devices of all processes as ('data', 'model'), `model` of them along the second.

    Raises:
        ValueError: they cannot be divided so.
    """
    devices = jax.device_count()
    if model < 1 or devices % model:
        raise ValueError(f"a mesh of {model} devices along 'model' does not fit {devices} devices")
    # jax's own default asks every operation where its result goes.
    automatic = (AxisType.Auto,) * 2
    return jax.make_mesh((devices // model, model), ("data", "model"), automatic)


def param_shardings(model: TrainableModel, mesh: Mesh) -> dict[str, NamedSharding]:
    """Where every parameter of a model goes, by its path joined by '/'.

    Raises:
        ValueError: naming the first parameter that the mesh does not divide.
    """
    axes = model.param_axes()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = {}
    for path, x in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        spec = nn.logical_to_mesh_axes(axes[path], RULES)
        shardings[path] = NamedSharding(mesh, spec)
        _check_divided(path, x.shape, shardings[path])
    return shardings


def _check_divided(path: str, shape: tuple[int, ...], sharding: NamedSharding) -> None:
    for size, axis in zip(shape, sharding.spec, strict=True):
        if axis is not None and size % sharding.mesh.shape[axis]:
            raise ValueError(
                f"{path} has shape {shape}, whose {size} is not divisible by the "
                f"{sharding.mesh.shape[axis]} devices along {axis!r}"
            )
