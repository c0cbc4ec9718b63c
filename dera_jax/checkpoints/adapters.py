"""Reads and writes LoRA adapters in the format of Hugging Face's PEFT.

adapter_config.json          rank, alpha and targets, and the name of the base
adapter_model.safetensors    the factors A [r, inputs] and B [outputs, r] of each projection
chat_template.jinja          the chat template that the adapter was trained with, if any
card.json                    how the adapter was trained, and the hash of its base (dera_jax only)
head.safetensors             the head of a reward model (dera_jax only)

Not supported, with a ValueError: adapters of another kind than LoRA, and everything that changes the
base or other parameters than kernels, such as DoRA, trained biases, `modules_to_save` and PiSSA.
"""

import dataclasses
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import safetensors.flax

from dera_jax.checkpoints import importers
from dera_jax.checkpoints.chat_template import TEMPLATE
from dera_jax.checkpoints.model_folder import put_in_place
from dera_jax.checkpoints.safetensors_file import open_safetensors
from dera_jax.checkpoints.storage import Folder, StoredArray, prefix_errors, read_arrays
from dera_jax.files import json_files
from dera_jax.models.finite import check_params
from dera_jax.models.language_model import PyTree
from dera_jax.models.lora import Adapter, factor_shapes
from dera_jax.models.registry import FamilyModel
from dera_jax.partitioning import LORA_A, LORA_B, to_host, write_once

CONFIG, FACTORS, CARD = "adapter_config.json", "adapter_model.safetensors", "card.json"
HEAD = "head.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = {LORA_A: "lora_A.weight", LORA_B: "lora_B.weight"}
_USED = (
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern",
    "alpha_pattern", "target_modules", "layers_to_transform", "layers_pattern", "exclude_modules", "revision",
)  # fmt: skip
# Settings of the training that made the adapter, which its factors do not depend on any more.
_PAST = ("inference_mode", "auto_mapping", "task_type", "peft_version", "lora_dropout", "loftq_config", "megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config")  # fmt: skip
_STARTS = (
    True,
    False,
    None,
    "gaussian",
    "orthogonal",
)  # values of init_lora_weights that keep the base


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
    """An adapter folder whose factors are not read yet.

    Attributes:
        folder: the folder.
        settings: content of adapter_config.json.
        card: content of card.json; empty if there is none.
    """

    folder: Folder
    settings: Mapping[str, object]
    card: dict

    @property
    def where(self) -> str:
        """Path or URL of the folder."""
        return self.folder.where

    @property
    def base(self) -> str | None:
        """Name of the base that the adapter was trained on, as `load` reads it."""
        name = self.settings.get("base_model_name_or_path")
        return f"{name}@{self.revision}" if name and self.revision else name

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of the base on the hub; None if the adapter names none."""
        return self.settings.get("revision")

    @property
    def has_head(self) -> bool:
        """Whether the folder holds the head of a reward model."""
        return self.folder.has(HEAD)


def is_adapter(folder: Folder) -> bool:
    """Returns whether a folder holds an adapter."""
    return folder.has(CONFIG)


def open_adapter(folder: Folder) -> StoredAdapter:
    """Opens an adapter without reading its factors.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: a file is damaged, or adapter_config.json says something that is not supported.
    """
    settings, where = folder.read_json(CONFIG), folder.path(CONFIG)
    if settings.get("peft_type") != "LORA":
        raise ValueError(
            f"{where}: peft_type is {settings.get('peft_type')!r}; only 'LORA' is supported"
        )
    if settings.get("bias", "none") != "none":
        raise ValueError(f"{where}: bias is {settings['bias']!r}; only 'none' is supported")
    if settings.get("init_lora_weights") not in _STARTS:
        raise ValueError(
            f"{where}: init_lora_weights is {settings['init_lora_weights']!r}, which changed the base; "
            "convert the adapter with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    known = (*_USED, *_PAST, "bias", "init_lora_weights")
    if other := sorted(key for key, x in settings.items() if x and key not in known):
        raise ValueError(
            f"{where}: {other[0]} is {settings[other[0]]!r}, which is not supported; merge the adapter with "
            "PEFT's merge_and_unload() and load the merged model"
        )
    return StoredAdapter(folder, settings, folder.read_json(CARD) if folder.has(CARD) else {})


def read_adapter(stored: StoredAdapter, model: FamilyModel) -> Adapter:
    """Reads the factors of an adapter for a base of this architecture, in float32.

    Raises:
        FileNotFoundError: the file of the factors is missing.
        ValueError: a factor has no place in the model or another shape; its rank is not the one of
            adapter_config.json; a target has no factors; or a value is not finite.
    """
    arrays = open_safetensors(stored.folder, FACTORS)
    modules, shapes, settings = _modules(model), factor_shapes(model), stored.settings
    by_module = {module: path for path, module in modules.items()}
    with prefix_errors(stored.folder.path(FACTORS)):
        found = _by_module(arrays, by_module)
    with prefix_errors(stored.folder.path(CONFIG)):
        _check_targets(settings, modules.values(), found)
    factors, alphas = {}, []
    for module in found:
        path, names = by_module[module], {k: f"{_PREFIX}{module}.{x}" for k, x in _SUFFIXES.items()}
        rank = _pattern(settings.get("rank_pattern"), module, settings.get("r"))
        expected = {LORA_A: (rank, shapes[path][0]), LORA_B: (shapes[path][1], rank)}
        for key, name in names.items():
            if arrays[name].shape != expected[key]:
                raise ValueError(
                    f"{arrays[name].where} has the shape {arrays[name].shape}; expected {expected[key]} for a "
                    f"rank of {rank} (r and rank_pattern of {CONFIG}) and this base"
                )
        factors[path] = {key: arrays[name].transposed() for key, name in names.items()}
        alphas.append(
            (path, float(_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"])))
        )
    flat = {f"{path}/{key}": x for path, both in factors.items() for key, x in both.items()}
    read = read_arrays(flat, None, "float32")
    factors = {path: {key: read[f"{path}/{key}"] for key in both} for path, both in factors.items()}
    return Adapter(factors, tuple(sorted(alphas)), bool(settings.get("use_rslora")))


def read_head(stored: StoredAdapter) -> dict[str, jax.Array]:
    """Reads the head of a reward model; raises FileNotFoundError if the folder has none."""
    return read_arrays(open_safetensors(stored.folder, HEAD), None, "float32")


def save_adapter(
    folder: Path,
    model: FamilyModel,
    params: Adapter | Mapping[str, PyTree],
    base: str,
    card: Mapping[str, object],
    dtype: str = "float32",
    chat_template: str | None = None,
) -> None:
    """Writes an adapter that PEFT can load, completely or not at all; an existing folder is replaced.

    Args:
        folder: folder to create.
        model: architecture of the base.
        params: the adapter, or {"trunk": adapter, "head": arrays} of a `ValueHead`.
        base: name of the base, as `load` reads it.
        card: any content that JSON can hold.
        dtype: dtype of the stored factors, 'float32' or 'bfloat16'.
        chat_template: source of the chat template; None for a model without one.

    Raises:
        FloatingPointError: a value is NaN or infinite.
    """
    folder = Path(folder)
    adapter, head = (
        (params, None) if isinstance(params, Adapter) else (params["trunk"], params["head"])
    )
    arrays, modules = {}, _modules(model)
    for path, factors in adapter.factors.items():
        for key, suffix in _SUFFIXES.items():
            arrays[f"{_PREFIX}{modules[path]}.{suffix}"] = jnp.asarray(factors[key], dtype).T
    arrays, head = to_host(arrays), head and to_host(head)
    check_params((arrays, head), f"the adapter to be written to {folder}")
    content = _settings(adapter, modules) | {"base_model_name_or_path": base}

    def write() -> None:
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        safetensors.flax.save_file(
            jax.tree.map(jnp.asarray, arrays), draft / FACTORS, {"format": "pt"}
        )
        if head is not None:
            safetensors.flax.save_file(jax.tree.map(jnp.asarray, head), draft / HEAD)
        json_files.write(draft / CONFIG, content, sort_keys=True)
        json_files.write(draft / CARD, dict(card), sort_keys=True)
        if chat_template is not None:
            (draft / TEMPLATE).write_bytes(chat_template.encode())
        put_in_place(draft, folder)

    write_once(write)


def _modules(model: FamilyModel) -> dict[str, str]:
    """Returns the names of transformers' modules of all linear layers, by our path."""
    named = importers.importer_of(model.config).names_of(model.config)
    module = {ours: theirs[0].removesuffix(".weight") for ours, theirs, _ in named}
    return {path: module[f"{path}/kernel"] for path in factor_shapes(model)}


def _by_module(arrays: Mapping[str, StoredArray], known: Iterable[str]) -> list[str]:
    """Returns the modules that have factors; raises ValueError for a factor without a place."""
    found = {}
    for name in arrays:
        key = next((k for k, x in _SUFFIXES.items() if name.endswith(f".{x}")), None)
        module = name.removeprefix(_PREFIX).removesuffix(f".{_SUFFIXES.get(key, '')}")
        if not name.startswith(_PREFIX) or key is None or module not in known:
            raise ValueError(
                f"{name!r} is no factor of a linear layer of the base; all arrays must be"
            )
        found.setdefault(module, set()).add(key)
    for module, keys in found.items():
        if missing := sorted(_SUFFIXES.keys() - keys):
            raise ValueError(f"{module!r} has no {_SUFFIXES[missing[0]]}")
    if not found:
        raise ValueError("there are no factors")
    return sorted(found)


def _check_targets(settings: Mapping, modules: Iterable[str], found: Iterable[str]) -> None:
    """Raises ValueError unless the modules with factors are those of target_modules."""
    targets = settings.get("target_modules")
    if any(settings.get(key) for key in ("layers_to_transform", "exclude_modules")) or not targets:
        return  # the factors say which modules are meant
    if targets == "all-linear":
        matches = lambda module: True
    elif isinstance(targets, str):
        matches = lambda module: re.fullmatch(targets, module)
    else:
        matches = lambda module: any(module == x or module.endswith(f".{x}") for x in targets)
    expected = {module for module in modules if matches(module)}
    if different := sorted(expected ^ set(found)):
        has = "has no factors" if different[0] in expected else "has factors"
        raise ValueError(f"{different[0]} {has}, which contradicts target_modules {targets!r}")


def _pattern(patterns: Mapping[str, object] | None, module: str, default: object) -> object:
    """Returns the value for a module: of the first pattern that matches the end of its name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _settings(adapter: Adapter, modules: Mapping[str, str]) -> dict[str, object]:
    """Returns the content of adapter_config.json, without the base's name."""
    ranks = {path: factors[LORA_A].shape[-1] for path, factors in adapter.factors.items()}
    rank, alpha = (_most_common(x.values()) for x in (ranks, dict(adapter.alphas)))
    targets = {modules[path] for path in ranks}
    ends = {x.rpartition(".")[2] for x in targets}
    covered = {x for x in modules.values() if x.rpartition(".")[2] in ends}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": adapter.rank_stabilized,
        "target_modules": sorted(ends if covered == targets else targets),
        "rank_pattern": {modules[path]: r for path, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {modules[path]: a for path, a in adapter.alphas if a != alpha},
        "inference_mode": True,
    }


def _most_common(values: Iterable[float]) -> float:
    values = list(values)
    return max(sorted(set(values)), key=values.count)
