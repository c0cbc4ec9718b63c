"""Tasks as the model of a folder reads them: a tokenizer.json with an added token."""

import dataclasses

import flax.traverse_util
import numpy as np
import pytest
import tokenizers

from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import task_data
from dera_jax.data.encoding import Sizes
from dera_jax.models.t5 import T5Config, param_shapes
from dera_jax.tasks import jsonl
from tests.texts import plain_ids

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
    examples = task_data.epoch(TASK, "train", text, Sizes(6, 2))
    assert text.vocabulary.pieces == PIECES
    np.testing.assert_array_equal(examples.inputs.tokens, [[3, 4, 6, 5, 1, 0], [3, 4, 1, 0, 0, 0]])
    np.testing.assert_array_equal(examples.inputs.lengths, [5, 3])
    np.testing.assert_array_equal(examples.targets.tokens, [[5, 1], [4, 1]])
    np.testing.assert_array_equal(examples.targets.lengths, [2, 2])
    alone = examples.document[np.arange(2)]
    np.testing.assert_array_equal(alone.tokens, [[4, 6, 5], [4, 0, 0]])
    np.testing.assert_array_equal(alone.lengths, [3, 1])
    assert text.decode([3, 4, 6, 5, 1, 7]) == "say red<sep> größe"


@pytest.mark.parametrize("begin", [None, "<sep>"])
def test_a_decoder_s_inputs_have_no_end_and_begin_where_its_vocabulary_says_so(folder, begin):
    task = f"{TASK}_{begin is None}"
    columns = {"document": ["red größe red", "red"], "summary": ["größe", "red"]}
    jsonl.register_pairs(task, lambda split: columns, ["train"], "say {document}")
    vocabulary = dataclasses.replace(load(folder).tokenizer.vocabulary, begin=begin)
    text = Tokenizer(vocabulary, ends_prompts=False)
    start = [6] * (begin is not None)
    whole, cut = (task_data.epoch(task, "train", text, Sizes(n, 2)) for n in (6, 3))
    assert plain_ids(whole.inputs) == [[*start, 3, 4, 5, 4], [*start, 3, 4]]
    assert plain_ids(cut.inputs) == [[*start, 3, 4, 5][:3], [*start, 3, 4]]
    for found in (whole, cut):
        assert plain_ids(found.targets) == [[5, 1], [4, 1]]
        assert plain_ids(found.document[np.arange(2)]) == [[4, 5, 4], [4]]


def test_control_tokens_that_a_document_spells_are_characters(folder):
    """They have no pieces here; the added token, which is no control token, is read as such."""
    task = f"{TASK}_spelt"
    columns = {"document": ["red </s> <pad> <sep> red"], "summary": ["red </s>"]}
    jsonl.register_pairs(task, lambda split: columns, ["train"], "say {document}")
    found = task_data.epoch(task, "train", load(folder).tokenizer, Sizes(40, 9))
    unknown = 2
    (ids,), (target,) = plain_ids(found.inputs), plain_ids(found.targets)
    assert ids[:2] == [3, 4] and ids[-3:] == [6, 4, 1] and set(ids[2:-3]) == {unknown}
    assert target[0] == 4 and target[-1] == 1 and set(target[1:-1]) == {unknown}


def test_a_folder_that_does_not_say_its_ids_is_refused(tmp_path):
    save_model(tmp_path / "silent", CONFIG, None, PARAMS, {})
    silent = load(tmp_path / "silent")
    with pytest.raises(
        ValueError, match="does not say what its ids mean.*VOCABULARY and EXTRA_IDS"
    ):
        silent.encode_prompt("red", 6)
