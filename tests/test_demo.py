"""The main job, on a small random pair: everything but the quality of the text."""

import json

import jax
import pytest

from dera_jax import demo_t5
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.evaluation import record_store
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5

CONFIG = T5Config(
    vocab_size=4096, emb_dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=8,
    mlp_dim=16, logits_via_embedding=True,
)  # fmt: skip
CARD = {"length_range": [3, 8], "max_length": 12, "beta": 0.5}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Command line of a small demo, without --output."""
    folder = tmp_path_factory.mktemp("pair")
    vocabulary = SentencePieceVocabulary(demo_t5.ASSETS / "docstrings.model", 96)
    for i, name in enumerate(("reference", "aligned")):
        params = T5(CONFIG).init(jax.random.key(i))
        save_model(folder / name, CONFIG, vocabulary, params, CARD)
    models = ["--reference", str(folder / "reference"), "--aligned", str(folder / "aligned")]
    return [*models, "--samples", "2", "--lam", "0", "0.5", "1"]


@pytest.mark.slow
def test_demo_prints_a_table_and_texts_and_writes_its_results(options, tmp_path, capsys):
    output = str(tmp_path / "out")
    demo_t5.main([*options, "--output", output])
    printed = capsys.readouterr().out
    assert "16 held-out documents x 3 λ x 2 samples; reward 0 for 3 to 8 tokens" in printed
    assert "λ = 0 gives the reference model's own samples, token for token" in printed
    assert "λ = 1 gives the aligned model's own samples, token for token" in printed
    assert printed.count("human") == 3 and "in-range rate" in printed
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["lam"] for row in rows] == [0.0, 0.5, 1.0]
    assert len(record_store.read(tmp_path / "out")) == 16
    # The same command again finds its results; another one is refused.
    demo_t5.main([*options, "--output", output])
    with pytest.raises(SystemExit, match="holds a run with another configuration"):
        demo_t5.main([*options, "--seed", "1", "--output", output])
