"""Describes a checkpoint without reading its parameters, for `dera-jax info`."""

import dataclasses
import math
from collections.abc import Mapping

from dera_jax.checkpoints.adapters import FACTORS, StoredAdapter
from dera_jax.checkpoints.default_model import located
from dera_jax.checkpoints.importers import importer_of
from dera_jax.checkpoints.loaded import restrict_to_vocabulary
from dera_jax.checkpoints.recognise import GGUF, Checkpoint, open_checkpoint
from dera_jax.checkpoints.safetensors_file import open_safetensors
from dera_jax.checkpoints.storage import StoredArray
from dera_jax.checkpoints.vocabulary import NO_PIECE
from dera_jax.models.registry import family_of, model_of


def text(path: str) -> str:
    """Returns a line for each property of the checkpoint at a path; raises as `open_checkpoint`."""
    rows = _rows(open_checkpoint(located(path)))
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _rows(checkpoint: Checkpoint) -> dict[str, str]:
    config, adapter = checkpoint.config, checkpoint.adapter
    template = checkpoint.chat_template
    rows = {
        "checkpoint": adapter.where if adapter else checkpoint.where,
        "format": "LoRA adapter" if adapter else checkpoint.kind,
        "architecture": f"{_architecture(config)}{', a reward model' if checkpoint.head else ''}",
        "sizes": ", ".join(f"{x} {_shown(x, value)}" for x, value in _sizes(config).items()),
        "parameters": _num_parameters(checkpoint.arrays),
        "step": str(checkpoint.card.get("step", "not recorded")),
        "vocabulary": _vocabulary(checkpoint),
        "end ids": _end_ids(checkpoint),
        "chat template": "none" if template is None else f"{len(template):,} characters",
    }
    if trained := checkpoint.card.get("data", {}).get("files", {}).get("template"):
        rows["prompt template"] = repr(trained)
    if checkpoint.notes:
        rows["notes"] = "; ".join(checkpoint.notes)
    return rows | (_adapter_rows(adapter, checkpoint) if adapter else {})


def _adapter_rows(adapter: StoredAdapter, base: Checkpoint) -> dict[str, str]:
    settings = adapter.settings
    return {
        "base": f"{adapter.base}, found at {base.where}",
        "adapter": f"rank {settings['r']}, alpha {settings['lora_alpha']}, of {_targets(settings)}",
        "adapter parameters": _num_parameters(open_safetensors(adapter.folder, FACTORS)),
    }


def _targets(settings: Mapping) -> str:
    targets = settings["target_modules"]
    return targets if isinstance(targets, str) else ", ".join(sorted(targets))


def _architecture(config: object) -> str:
    """Returns the name in transformers of the architecture, if it has one, and the family's name."""
    family = family_of(config).name
    try:
        name = importer_of(config).described(config, "float32")["model_type"]
    except ValueError:  # options that no architecture of transformers has
        return family
    return family if name == family else f"{name}, of the family {family}"


def _shown(name: str, value: object) -> str:
    """Returns the text of a value; an attention window that all layers have is written once."""
    if name == "layer_windows" and len(set(value)) == 1:
        return f"{value[0]} in all layers"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sizes(config: object) -> dict[str, object]:
    """Returns the sizes and other numbers of a configuration that are not its defaults."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "end_ids" and getattr(config, field.name) != field.default
    }


def _num_parameters(arrays: Mapping[str, StoredArray]) -> str:
    return f"{sum(math.prod(x.shape) for x in arrays.values()):,}"


def _vocabulary(checkpoint: Checkpoint) -> str:
    if checkpoint.vocabulary is None:
        return "none in the checkpoint"
    pieces = checkpoint.vocabulary.pieces
    file = checkpoint.vocabulary.described()["file"] or "bytes"
    if checkpoint.kind == GGUF:
        file = "inside the GGUF file"
    return f"{file}, {sum(x != NO_PIECE for x in pieces):,} ids"


def _end_ids(checkpoint: Checkpoint) -> str:
    model, vocabulary = model_of(checkpoint.config), checkpoint.vocabulary
    if vocabulary is None:
        return ", ".join(map(str, model.end_ids)) or "not recorded"
    where, template = checkpoint.where, checkpoint.chat_template
    ends = restrict_to_vocabulary(model, vocabulary, where, template).end_ids
    return ", ".join(f"{x} {vocabulary.pieces[x]!r}" for x in ends)
