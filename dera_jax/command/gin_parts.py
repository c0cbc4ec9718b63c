"""Reads what gin files add to a command that decodes: a reward, and a mutator of prompts."""

import dataclasses
from collections.abc import Sequence

import gin

from dera_jax import bindings, configure
from dera_jax.command.listing import CONFIGS
from dera_jax.decoding.mutation import Mutator
from dera_jax.rewards.protocol import Reward

_BASE = f"{CONFIGS.name}/command.gin"
_OURS = f"{__name__}.GinParts"


@dataclasses.dataclass(frozen=True)
class GinParts:
    """Holds the reward and the mutator that gin files set; None for those that they do not set."""

    reward: Reward | None = None
    mutator: Mutator | None = None


def read(files: Sequence[str], given: Sequence[str], reference: str) -> GinParts:
    """Returns what gin files and bindings set.

    Args:
        files: gin files, later ones override earlier ones.
        given: bindings 'NAME = value'.
        reference: the macro REFERENCE, whose tokenizer learned rewards compare with theirs.

    Raises:
        ValueError, ImportError, OSError, TypeError: as `configure.parse` and `configure.launch`; or
            nothing sets REWARD or MUTATOR.
    """
    try:
        known = configure.parse([_BASE, *files], [f"REFERENCE = {reference!r}", *given], ["."])
    except ValueError as error:
        if configure.has_job():
            raise ValueError(
                f"{', '.join(files)}: a run, which `dera-jax train FILE` starts; this command reads files that set "
                "REWARD or MUTATOR"
            ) from error
        raise
    own = {("REFERENCE", bindings.MACRO, "value"): reference}  # not every file reads it
    reached = bindings.reachable_bindings(_OURS) | own
    bindings.check_types(reached, known)
    parts = gin.get_configurable(GinParts)()
    if parts == GinParts():
        raise ValueError(
            f"{', '.join(files)}: neither REWARD nor MUTATOR is set, which are all that this command reads of "
            "gin files; `dera-jax train FILE` runs a file"
        )
    bindings.check_read(reached, known)
    return parts
