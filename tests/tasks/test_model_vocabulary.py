"""Tasks as the model of a folder reads them: a tokenizer.json with an added token."""

import flax.traverse_util
import numpy as np
import pytest
import tokenizers

from dera_jax import data
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.encoding import Sizes
from dera_jax.models.t5 import T5Config, param_shapes
from tasks import jsonl

TASK = "test_model_vocabulary"
CONFIG = T5Config(
    vocab_size=8,
    emb_dim=2,
    num_heads=1,
    head_dim=2,
    mlp_dim=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
PARAMS = flax.traverse_util.unflatten_dict(
    {name: np.zeros(shape, np.float32) for name, shape in param_shapes(CONFIG)}, sep="/"
)
PIECES = ("<pad>", "</s>", "<unk>", "▁say", "▁red", "▁größe", "<sep>")


@pytest.fixture
def folder(tmp_path):
    """Of a model with a tokenizer.json and an added token; its parameters are not read."""
    model = tokenizers.models.Unigram([(x, -1.0) for x in PIECES[:-1]], unk_id=2)
    built = tokenizers.Tokenizer(model)
    built.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    built.decoder = tokenizers.decoders.Metaspace()
    built.add_special_tokens(list(PIECES[:3]))
    built.add_tokens([PIECES[-1]])
    built.save(str(tmp_path / "tokenizer.json"))
    vocabulary = JsonVocabulary(tmp_path / "tokenizer.json")
    save_model(tmp_path / "m", CONFIG, vocabulary, PARAMS, {})
    return tmp_path / "m"


def rows(split: str) -> dict[str, list[str]]:
    return {"document": ["red<sep> größe", "red"], "summary": ["größe", "red"]}


def test_a_task_has_the_ids_of_the_model(folder):
    jsonl.register_pairs(TASK, rows, ["train"], "say {document}")
    text = load(folder).tokenizer
    examples = data.epoch(TASK, "train", text, Sizes(6, 2))
    assert text.vocabulary.pieces == PIECES
    np.testing.assert_array_equal(examples.inputs.tokens, [[3, 4, 6, 5, 1, 0], [3, 4, 1, 0, 0, 0]])
    np.testing.assert_array_equal(examples.inputs.lengths, [5, 3])
    np.testing.assert_array_equal(examples.targets.tokens, [[5, 1], [4, 1]])
    np.testing.assert_array_equal(examples.targets.lengths, [2, 2])
    alone = examples.document[np.arange(2)]
    np.testing.assert_array_equal(alone.tokens, [[4, 6, 5], [4, 0, 0]])
    np.testing.assert_array_equal(alone.lengths, [3, 1])


def test_a_folder_that_does_not_say_its_ids_is_refused(tmp_path):
    save_model(tmp_path / "silent", CONFIG, None, PARAMS, {})
    silent = load(tmp_path / "silent")
    with pytest.raises(
        ValueError, match="does not say what its ids mean.*VOCABULARY and EXTRA_IDS"
    ):
        silent.encode_prompt("red", 6)
