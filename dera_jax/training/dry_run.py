"""Estimates the memory of a run from array shapes alone, without reading data or parameters."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from dera_jax.models.language_model import LanguageModel, Padded, Prompts
from dera_jax.rewards.protocol import Source

GIB = 2**30
_KEYWORDS = (8, 24)  # keywords of a document, and bytes of each keyword


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Holds the sizes and the memory of one compiled call.

    Attributes:
        name: name of the call.
        parameters: number of parameters of each network, by name of the network.
        tokens: largest number of tokens that one call processes, padding included.
        kept: bytes of its arguments and results per device; a buffer updated in place counts once.
        temporary: bytes per device that XLA allocates in addition while the call runs.
        platform: JAX backend whose compiler reported the sizes; other backends allocate
            differently.
    """

    name: str
    parameters: Mapping[str, int]
    tokens: int
    kept: int
    temporary: int
    platform: str


def program_cost(
    name: str, networks: Mapping[str, object], tokens: int, call: Callable, *shapes: object
) -> ProgramCost:
    """Compiles `call` for arguments of these shapes and returns the memory that it needs.

    Args:
        name: name of the call in the report.
        networks: parameters, or their shapes, by name of the network.
        tokens: largest number of tokens that one call processes.
        call: the jitted function.
        shapes: arguments of `call`, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
        TypeError, ValueError: the shapes do not fit each other.
    """
    memory = call.lower(*shapes).compile().memory_analysis()
    donated = memory.alias_size_in_bytes
    return ProgramCost(
        name=name,
        parameters={
            key: sum(x.size for x in jax.tree.leaves(params)) for key, params in networks.items()
        },
        tokens=tokens,
        kept=memory.argument_size_in_bytes + memory.output_size_in_bytes - donated,
        temporary=memory.temp_size_in_bytes,
        platform=jax.default_backend(),
    )


def shapes(tree: object) -> object:
    """Returns the `jax.ShapeDtypeStruct` of every array of a pytree, in the same structure."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def decodable(model: LanguageModel) -> LanguageModel:
    """Returns the model with an arbitrary end token if it has none, since decoding needs one."""
    if model.end_ids:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(model.config, end_ids=(0,)))


def prompt_shapes(batch: int, size: int) -> Prompts:
    """Returns the shapes of prompts [batch, size]."""
    array = jax.ShapeDtypeStruct
    return Prompts(array((batch, size), jnp.int32), array((batch,), jnp.int32))


def padded_shapes(batch: int, size: int) -> Padded:
    """Returns the shapes of padded sequences [batch, size]."""
    array = jax.ShapeDtypeStruct
    return Padded(array((batch, size), jnp.int32), array((batch,), jnp.int32))


def weight_shapes(batch: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of the example weights, float32 [batch]."""
    return jax.ShapeDtypeStruct((batch,), jnp.float32)


def source_shapes(batch: int, inputs: int, targets: int) -> Source:
    """Returns the shapes of a reward's `Source`, with a typical number and length of keywords."""
    keywords = jax.ShapeDtypeStruct((batch, *_KEYWORDS), jnp.uint8)
    prompts, document = prompt_shapes(batch, inputs), padded_shapes(batch, inputs)
    return Source(prompts, padded_shapes(batch, targets), keywords, document)


def format_costs(costs: Sequence[ProgramCost]) -> str:
    """Returns one paragraph of text per compiled call."""
    return "\n".join(map(_format, costs))


def _format(cost: ProgramCost) -> str:
    networks = ", ".join(f"{name} {size:,}" for name, size in cost.parameters.items())
    return (
        f"{cost.name}: at most {cost.tokens:,} tokens processed per call\n"
        f"  parameters: {networks}\n"
        f"  memory per device ({cost.platform}): {cost.kept / GIB:.2f} GiB for arguments and "
        f"results, plus {cost.temporary / GIB:.2f} GiB of temporary buffers"
    )
