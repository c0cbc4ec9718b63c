"""Pairs of models: loaded together, or refused in words."""

import dataclasses

import jax
import pytest

from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.vocabulary import Vocabulary, tokenizer
from dera_jax.evaluation.pairs import load_pair
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from tasks import vocabularies

CONFIG = T5Config(
    vocab_size=4096, emb_dim=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=4,
    mlp_dim=8, logits_via_embedding=True,
)  # fmt: skip


def shipped_vocabulary():
    from dera_jax.checkpoints import model_folder

    return Vocabulary(model_folder._shipped("docstrings.model"), 96)


def write(folder, vocabulary, config=CONFIG):
    save_model(folder, config, vocabulary, T5(config).init(jax.random.key(0)), {})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    other = root / "other.model"
    texts = ["some words to make other pieces from", "and yet more of them, so that there are many"]
    vocabularies.train(texts * 9, str(other), pieces=80)
    bytes_config = dataclasses.replace(CONFIG, vocab_size=259)
    return {
        "reference": write(root / "reference", shipped_vocabulary()),
        "same": write(root / "same", shipped_vocabulary()),
        "other": write(root / "other", Vocabulary(other, 96)),
        "fewer_sentinels": write(
            root / "fewer", dataclasses.replace(shipped_vocabulary(), extra_ids=95)
        ),
        "bytes": write(root / "bytes", Vocabulary(None), bytes_config),
    }


def test_a_pair_loads(folders):
    pair = load_pair(folders["reference"], [folders["same"]])
    assert len(pair.params) == 2 and pair.model.vocab_size == 4096


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "vocabularies differ at id 3"),
        ("bytes", "vocabularies differ at id 0"),
        (
            "fewer_sentinels",
            r"differ at id 4000: '<extra_id_95>' in .*reference, '<extra_id_94>' in",
        ),
    ],
)
def test_other_vocabularies_are_refused(folders, name, message):
    with pytest.raises(ValueError, match=message):
        load_pair(folders["reference"], [folders[name]])


def test_tokenizer_agrees_with_seqio(folders):
    ours = tokenizer(shipped_vocabulary())
    theirs = vocabularies.docstrings_vocabulary()
    text = "returns the element-wise maximum of two arrays, or none."
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode([*ours.encode(text), 1, 4095]) == text
    ours, theirs = tokenizer(Vocabulary(None)), vocabularies.bytes_vocabulary()
    assert ours.encode("Größe λ") == theirs.encode("Größe λ")
    assert ours.decode([*ours.encode("Größe λ"), 1, 300]) == "Größe λ"
