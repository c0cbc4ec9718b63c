"""What a run will need, from shapes alone: nothing is read, nothing computed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from dera_jax.models.language_model import LanguageModel, Padded, Prompts
from dera_jax.rewards.protocol import Source

GIB = 2**30
_KEYWORDS = (8, 24)  # of a document, and bytes of each


@dataclasses.dataclass(frozen=True)
class Need:
    """What one compiled call takes.

    Attributes:
        name: of the call.
        parameters: how many, by network.
        tokens: that a call reads or writes at most, padding included.
        kept: bytes of its arguments and results per device; what is updated in place counts once.
        temporary: bytes per device that XLA allocates on top while the call runs.
        platform: whose compiler said so; another one allocates otherwise.
    """

    name: str
    parameters: Mapping[str, int]
    tokens: int
    kept: int
    temporary: int
    platform: str


def need(
    name: str, networks: Mapping[str, object], tokens: int, call: Callable, *shapes: object
) -> Need:
    """Traces and compiles `call`, a jitted function, for arguments of these shapes.

    Args:
        name: what to call it.
        networks: parameters, or their shapes, by network.
        tokens: that it reads or writes at most.
        call: the jitted function.
        shapes: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
        TypeError, ValueError: shapes that do not fit each other.
    """
    memory = call.lower(*shapes).compile().memory_analysis()
    updated = memory.alias_size_in_bytes
    return Need(
        name=name,
        parameters={
            key: sum(x.size for x in jax.tree.leaves(params)) for key, params in networks.items()
        },
        tokens=tokens,
        kept=memory.argument_size_in_bytes + memory.output_size_in_bytes - updated,
        temporary=memory.temp_size_in_bytes,
        platform=jax.default_backend(),
    )


def shapes(tree: object) -> object:
    """A pytree of arrays as one of `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def decodable(model: LanguageModel) -> LanguageModel:
    """A model with end tokens: where only shapes count, any will do."""
    if model.end_ids:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(model.config, end_ids=(0,)))


def prompt_shapes(batch: int, size: int) -> Prompts:
    """`batch` prompts of `size` tokens."""
    array = jax.ShapeDtypeStruct
    return Prompts(array((batch, size), jnp.int32), array((batch,), jnp.int32))


def padded_shapes(batch: int, size: int) -> Padded:
    """`batch` sequences of `size` tokens."""
    array = jax.ShapeDtypeStruct
    return Padded(array((batch, size), jnp.int32), array((batch,), jnp.int32))


def weight_shapes(batch: int) -> jax.ShapeDtypeStruct:
    """How much each of `batch` sequences counts."""
    return jax.ShapeDtypeStruct((batch,), jnp.float32)


def source_shapes(batch: int, inputs: int, targets: int) -> Source:
    """What a reward knows of a batch; keywords as many and as long as a task's usually are."""
    keywords = jax.ShapeDtypeStruct((batch, *_KEYWORDS), jnp.uint8)
    prompts, document = prompt_shapes(batch, inputs), padded_shapes(batch, inputs)
    return Source(prompts, padded_shapes(batch, targets), keywords, document)


def format_needs(needs: Sequence[Need]) -> str:
    """A paragraph for each."""
    return "\n".join(map(_format, needs))


def _format(x: Need) -> str:
    networks = ", ".join(f"{name} {size:,}" for name, size in x.parameters.items())
    return (
        f"{x.name}: {x.tokens:,} tokens at most\n"
        f"  parameters: {networks}\n"
        f"  memory per device ({x.platform}): {x.kept / GIB:.2f} GiB kept and "
        f"{x.temporary / GIB:.2f} GiB while it runs"
    )
