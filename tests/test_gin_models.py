"""The model files: each gives the T5 of its name, by its published number of parameters."""

import math
from pathlib import Path

import gin
import pytest

from dera_jax import configure
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5

FILES = sorted(Path("gin_configs/models").glob("*.gin"))
OWN = {"micro", "tiny"}
# The public checkpoints of T5 1.0 and 1.1, as others counted them (Keras names these numbers too). Raffel et al.
# 2020 (arXiv 1910.10683) round the first five to 60, 220, 770, 2,800 and 11,000 million.
EXACT = {
    "t5_1_0_small": 60_506_624,
    "t5_1_0_base": 222_903_552,
    "t5_1_0_large": 737_668_096,
    "t5_1_0_3b": 2_851_598_336,
    "t5_1_0_11b": 11_307_321_344,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
}
# Of mT5 and of ByT5 alike: Xue et al. 2022 (arXiv 2105.13626), table 1, with three digits. Xue et al. 2021
# (arXiv 2010.11934) round those of mT5 to 300 M, 580 M, 1.2 B, 3.7 B and 13 B.
ROUNDED = {"small": 300e6, "base": 582e6, "large": 1.23e9, "xl": 3.74e9, "xxl": 12.9e9}
ROUNDING = 0.005


def config_of(file: str) -> T5Config:
    configure.parse([file], [], ["."])
    return gin.get_configurable("dera_jax.models.t5.T5Config")()


def config_of_model(name: str, folder: Path, dropout_rate: float) -> T5Config:
    including = folder / "including.gin"
    model = f"gin_configs/models/{name}.gin"
    including.write_text(f"include '{model}'\nDROPOUT_RATE = {dropout_rate}\n")
    return config_of(str(including))


def count(c: T5Config) -> int:
    """Parameters, from the sizes."""
    attention = 4 * c.emb_dim * c.num_heads * c.head_dim
    mlp = (len(c.mlp_activations) + 1) * c.emb_dim * c.mlp_dim
    encoder = c.num_encoder_layers * (attention + mlp + 2 * c.emb_dim)
    decoder = c.num_decoder_layers * (2 * attention + mlp + 3 * c.emb_dim)
    embeddings = (1 if c.logits_via_embedding else 2) * c.vocab_size * c.emb_dim
    final_norms, relative_biases = 2 * c.emb_dim, 2 * 32 * c.num_heads
    return embeddings + encoder + decoder + final_norms + relative_biases


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_every_model_file_gives_the_model_of_its_name(name, tmp_path):
    config = config_of_model(name, tmp_path, dropout_rate=0.25)
    assert config.dropout_rate == 0.25
    found = sum(math.prod(shape) for _, shape in T5(config).param_shapes())
    assert found == count(config)
    if name in OWN:
        return
    size = name.rpartition("_")[2]
    expected = EXACT.get(name) or pytest.approx(ROUNDED[size], rel=ROUNDING)
    assert found == expected and config.dtype == "bfloat16"
    # T5's own is known by its exact number; this tells mT5 from ByT5.
    vocabularies = {"mt5": 250_112, "byt5": 384, "t5": 32_128}
    assert config.vocab_size == vocabularies[name.partition("_")[0]]
    assert checkpoint_of(name).startswith("gs://t5-data/pretrained_models/t5x/")


def checkpoint_of(name: str) -> str:
    text = Path(f"gin_configs/models/{name}.gin").read_text()
    return text.partition("# T5X's public checkpoint: ")[2].partition("\n")[0]


SIZES = [
    f"t5_{version}_{size}" for version in ("1_0", "1_1") for size in ("small", "base", "large")
]
PAPERS = {  # Liu et al. 2024 (arXiv 2402.02992)
    "TASK": "xsum",
    "LOW": 50,
    "HIGH": 60,
    "BETA": 0.1,
    "POLICY_LEARNING_RATE": 5e-6,
    "VALUE_LEARNING_RATE": 1e-5,
}


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_experiment_at_every_size(name, tmp_path):
    """What is included later undoes neither the model nor the settings; the header names its files."""
    expected = config_of_model(name, tmp_path, dropout_rate=0.1)
    file = Path(f"gin_configs/experiments/length_reward/xsum_{name}.gin")
    assert config_of(str(file)) == expected
    macros = {key: gin.query_parameter(f"{key}/gin.macro.value") for key in (*PAPERS, "MODEL_DIR")}
    assert macros == PAPERS | {"MODEL_DIR": f"out/length_reward/xsum_{name}"}
    header = file.read_text()
    assert f"--gin_file={file} " in header
    assert f"--gin.INITIAL_MODEL='\"{checkpoint_of(name)}\"'" in header
