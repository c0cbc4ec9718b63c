"""Implements LoRA adapters: low-rank updates of the kernels of a frozen base model.

An adapted kernel is W + s·A·B with A [inputs, r] and B [r, outputs] (Hu et al. 2021, arXiv 2106.09685,
equation 3). The scale s is α/r, or α/√r for rank-stabilized adapters (Kalajdzievski 2023, arXiv
2312.03732). Only the factors are trained, so an `Adapter` is a parameter tree of its own; `attach` adds
one or several adapters to the parameters of their base, where the networks read them.

Axes: r rank, C component models, one for each attached adapter.
"""

import dataclasses
import math
from collections.abc import Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.partitioning import LORA_A, LORA_B


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Configures a new adapter.

    Attributes:
        rank: r, rank of every adapted kernel's update.
        alpha: α; the update is multiplied by α/r, or by α/√r with `rank_stabilized`.
        targets: names of the projections that are adapted, such as ("query", "value"); empty for all
            linear layers except the embedding and the output logits.
        rank_stabilized: whether the scale is α/√r instead of α/r.
        seed: seed of the random factors.

    Raises:
        ValueError: naming an invalid field and what it accepts.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    rank_stabilized: bool = False
    seed: int = 0

    def __post_init__(self):
        checks.check_fields(
            self,
            rank=checks.integer(1),
            alpha=checks.number(above=0),
            targets=checks.sequence(checks.STRING, "('query', 'value')", least=0),
            rank_stabilized=checks.FLAG,
            seed=checks.SEED,
        )


@struct.dataclass
class Adapter:
    """The trainable factors of an adapter, a pytree.

    Attributes:
        factors: {"lora_a": [inputs, r], "lora_b": [r, outputs]} by the path of the adapted projection,
            joined by '/'. Several input or output axes of a kernel, such as heads, are one here.
        alphas: (path, α) of every adapted projection, sorted.
        rank_stabilized: see `LoraConfig`.
    """

    factors: dict[str, dict[str, Array]]
    alphas: tuple[tuple[str, float], ...] = struct.field(pytree_node=False)
    rank_stabilized: bool = struct.field(pytree_node=False, default=False)

    def scale(self, path: str) -> float:
        """Returns the scale s of the adapted projection at `path`."""
        rank = self.factors[path][LORA_A].shape[-1]
        return dict(self.alphas)[path] / rank ** (0.5 if self.rank_stabilized else 1.0)


def factor_shapes(model: TrainableModel) -> dict[str, tuple[int, int]]:
    """Returns (inputs, outputs) of every linear layer that can be adapted, by its path.

    These are all kernels except that of the output logits.
    """
    axes, shapes = model.param_axes(), dict(model.param_shapes())
    found = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition("/")
        if leaf != "kernel" or "vocab" in axes[name]:
            continue
        # A projection reads the embedding axis, or returns to it; its other axes are one side.
        inputs = 1 if axes[name][0] == "embed" else len(shape) - 1
        found[path] = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    return found


def new_adapter(model: TrainableModel, config: LoraConfig) -> Adapter:
    """Returns a new adapter in float32, with which the model computes what its base does.

    A is uniform with variance 1/(3·inputs) and B is 0, as in PEFT.

    Raises:
        ValueError: the model has no projection of a name in `config.targets`.
    """
    shapes = factor_shapes(model)
    names = {path.rpartition("/")[2] for path in shapes}
    if unknown := sorted(set(config.targets) - names):
        raise ValueError(
            f"LoraConfig.targets names {unknown[0]!r}; the model's projections are {', '.join(sorted(names))}"
        )
    factors, targets, key = {}, config.targets or names, jax.random.key(config.seed)
    for i, (path, (inputs, outputs)) in enumerate(sorted(shapes.items())):
        if path.rpartition("/")[2] in targets:
            bound = 1 / math.sqrt(inputs)
            a = jax.random.uniform(
                jax.random.fold_in(key, i), (inputs, config.rank), minval=-bound, maxval=bound
            )
            factors[path] = {LORA_A: a, LORA_B: jnp.zeros((config.rank, outputs))}
    alphas = tuple((path, config.alpha) for path in sorted(factors))
    return Adapter(factors, alphas, config.rank_stabilized)


def attach(base: PyTree, *adapters: Adapter | None) -> PyTree:
    """Returns the base's parameters with adapters, for a model of C = len(adapters) components.

    Each adapted projection gets the stacked factors `lora_a` [C, inputs, r] and `lora_b` [C, r,
    outputs], float32, the latter multiplied by the scale. Smaller ranks are padded with zeros, and None
    stands for the base itself, an adapter of zeros. The base's arrays are not copied.
    """
    flat = flax.traverse_util.flatten_dict(base, sep="/")
    for path in sorted({path for adapter in adapters if adapter for path in adapter.factors}):
        own = [_scaled(adapter, path) for adapter in adapters]
        known = [factors for factors in own if factors is not None]
        rank = max(a.shape[1] for a, _ in known)
        zeros = tuple(map(jnp.zeros_like, known[0]))
        padded = [_padded(*(factors or zeros), rank) for factors in own]
        flat[f"{path}/{LORA_A}"], flat[f"{path}/{LORA_B}"] = map(
            jnp.stack, zip(*padded, strict=True)
        )
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def with_base(tree: PyTree, base: PyTree | None) -> PyTree:
    """Replaces every `Adapter` in a tree of parameters by the base with this adapter.

    So a trainer differentiates by a tree of adapters and heads, and its networks get full parameters.
    Without a base (None) the tree has no adapters and is returned unchanged.
    """
    if base is None:
        return tree
    replace = lambda x: attach(base, x) if isinstance(x, Adapter) else x
    return jax.tree.map(replace, tree, is_leaf=lambda x: isinstance(x, Adapter))


def merge(base: PyTree, adapter: Adapter) -> PyTree:
    """Returns the full parameters of a model whose kernels are W + s·A·B, in the base's dtypes."""
    flat = dict(flax.traverse_util.flatten_dict(base, sep="/"))
    for path in adapter.factors:
        kernel, (a, b) = flat[f"{path}/kernel"], _scaled(adapter, path)
        update = jnp.matmul(a, b, precision="highest").reshape(kernel.shape)
        flat[f"{path}/kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _scaled(adapter: Adapter | None, path: str) -> tuple[Array, Array] | None:
    """Returns A and s·B of a projection in float32; None if the adapter does not change it."""
    if adapter is None or path not in adapter.factors:
        return None
    factors: Mapping[str, Array] = adapter.factors[path]
    a, b = (factors[name].astype(jnp.float32) for name in (LORA_A, LORA_B))
    return a, b * adapter.scale(path)


def _padded(a: Array, b: Array, rank: int) -> tuple[Array, Array]:
    """Pads the factors with zeros to a higher rank, which does not change their product."""
    missing = rank - a.shape[1]
    return jnp.pad(a, ((0, 0), (0, missing))), jnp.pad(b, ((0, missing), (0, 0)))
