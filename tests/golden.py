"""T5X's own outputs and checkpoints, for tests that compare with them."""

import json
import zipfile
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from dera_jax.models.language_model import Prompts
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5

FOLDER = Path(__file__).parent / "data" / "t5x"
VERSIONS = ("v1_0", "v1_1")
CHECKPOINTS = (
    ("v1_0", "legacy"),
    ("v1_0", "legacy_bf16"),
    ("v1_0", "orbax"),
    ("v1_1", "legacy"),
    ("v1_1", "orbax"),
)


def load(version: str, dtype: str = "float32"):
    """(model, params, dict of T5X's inputs and outputs) of one of VERSIONS."""
    described = json.loads((FOLDER / version / "config.json").read_text())
    network = described["network"] | {"end_ids": (described["eos_id"],)}
    network.pop("float32_attention_logits")  # ours always are
    model = T5(T5Config(**(network | {"dtype": dtype})))
    params = unflatten_dict(dict(np.load(FOLDER / version / "params.npz")), sep="/")
    return model, params, dict(np.load(FOLDER / version / "golden.npz"))


def prompts(g: dict, rows=slice(None), size: int | None = None, lam=None) -> Prompts:
    """T5X's inputs, which are padded with 0, at some rows and cut to `size` tokens."""
    tokens = np.asarray(g["encoder_input_tokens"])[rows, :size]
    return Prompts(tokens, np.sum(tokens > 0, axis=1, dtype=np.int32), lam)


def unpack(version: str, kind: str, folder: Path) -> Path:
    """Unpacks one of CHECKPOINTS, as T5X wrote it, into `folder`; returns checkpoint_<step> there."""
    with zipfile.ZipFile(FOLDER / version / f"{kind}.zip") as archive:
        archive.extractall(folder)
    return next(folder.glob("checkpoint_*"))
