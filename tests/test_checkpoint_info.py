"""`dera-jax info` names the architecture, and says what a load would say."""

import dataclasses
import json

import pytest

from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.command import checkpoint_info
from dera_jax.models.llama_lm import Llama
from tests import tiny
from tests.checkpoints import gguf_models


def rows(path) -> dict[str, str]:
    lines = checkpoint_info.text(str(path)).splitlines()
    return {line[:14].strip(): line[14:].strip() for line in lines}


@pytest.mark.parametrize(
    ("changes", "architecture", "sizes"),
    [
        ({}, "llama", "norm_epsilon 0.001"),
        (
            {"layer_windows": (4, 4)},
            "mistral, of the family llama",
            "layer_windows 4 in all layers",
        ),
        (
            {"head_norms": True, "layer_windows": (None, 4)},
            "qwen3, of the family llama",
            "head_norms True, layer_windows (None, 4)",
        ),
    ],
)
def test_the_name_in_transformers_is_said(tmp_path, changes, architecture, sizes):
    config = dataclasses.replace(tiny.LLAMA, **changes)
    save_hugging_face(tmp_path / "m", config, None, tiny.params(Llama(config)), "float32")
    found = rows(tmp_path / "m")
    assert found["architecture"] == architecture and found["sizes"].endswith(sizes)
    assert "notes" not in found


def test_sampling_fields_are_said_not_to_be_applied(tmp_path):
    save_hugging_face(tmp_path / "m", tiny.LLAMA, None, tiny.params(Llama(tiny.LLAMA)), "float32")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"top_p": 0.8}))
    assert "top_p 0.8: not applied; set" in rows(tmp_path / "m")["notes"]


def test_the_vocabulary_of_a_gguf_file_is_inside_of_it(tmp_path):
    found = rows(gguf_models.write_model(tmp_path / "m.gguf", "llama"))
    assert found["vocabulary"] == f"inside the GGUF file, {gguf_models.NUM_TOKENS} ids"
