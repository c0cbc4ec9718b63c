"""Pairs of models: loaded together, or refused in words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load, load_models
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.rewriters import load_rewriter
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.data.task_data import TaskData
from dera_jax.models.language_model import UNUSED_LOGIT
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.tasks import vocabularies
from dera_jax.training.supervised import finished_model, read_for_data
from tests import golden, prompts
from tests.compiled import compiled

CONFIG = T5Config(
    vocab_size=4096, emb_dim=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=4,
    mlp_dim=8, logits_via_embedding=True,
)  # fmt: skip


def shipped_vocabulary():
    from dera_jax.checkpoints import model_folder

    return SentencePieceVocabulary(model_folder._shipped("docstrings.model"), 96)


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
        "other": write(root / "other", SentencePieceVocabulary(other, 96)),
        "fewer_sentinels": write(
            root / "fewer", dataclasses.replace(shipped_vocabulary(), extra_ids=95)
        ),
        "bytes": write(root / "bytes", ByteVocabulary(), bytes_config),
    }


def test_a_pair_loads(folders):
    pair = load(folders["reference"], folders["same"])
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
        load(folders["reference"], folders[name])


def test_tokenizer_agrees_with_seqio(folders):
    ours = tokenizer(shipped_vocabulary())
    theirs = vocabularies.docstrings_vocabulary()
    text = "returns the element-wise maximum of two arrays, or none."
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode([*ours.encode(text), 1, 4095]) == text
    ours, theirs = tokenizer(ByteVocabulary()), seqio.ByteVocabulary()
    assert ours.encode("Größe λ") == theirs.encode("Größe λ")
    assert ours.decode([*ours.encode("Größe λ"), 1, 300]) == "Größe λ"


def logits_of(model, params, lam=None) -> np.ndarray:
    """Teacher-forced, of ids that all vocabularies here have."""
    lam = None if lam is None else jnp.full((2, 1), lam)
    some, targets = (
        prompts.zero_padded([[9, 8, 7, 1], [5, 6, 1, 0]], lam),
        jnp.array([[[3, 4, 1]], [[9, 2, 5]]]),
    )
    state = compiled(model, "start", 2, 3)(params, some, 1, 1)
    return np.asarray(compiled(model, "teacher_forced")(params, state, targets).logits)


def varied(params, seed: int, tables: float = 1.0):
    """Other parameters of the same shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x + tables * rng.standard_normal(x.shape) * np.std(x), np.float32),
        params,
    )


@pytest.mark.parametrize("turned", [False, True])
def test_a_checkpoint_of_t5x_makes_a_pair_with_a_folder_of_ours(tmp_path, turned):
    model, params, _ = golden.load("v1_1")
    theirs = golden.unpack("v1_1", "legacy", tmp_path)
    other = varied(params, 0)
    save_model(tmp_path / "ours", model.config, None, other, {})
    order = [(theirs, params), (tmp_path / "ours", other)][:: -1 if turned else 1]
    pair = load(order[0][0], order[1][0])
    assert pair.vocabulary is None
    expected = [logits_of(model, params) for _, params in order]
    assert np.abs(expected[0] - expected[1]).max() > 0.5
    for lam, own in ((0.0, expected[0]), (1.0, expected[1]), (0.5, sum(expected) / 2)):
        found = logits_of(pair.model, pair.params, lam)
        difference = found - own  # up to a constant of each distribution
        np.testing.assert_allclose(
            difference - difference.mean(-1, keepdims=True), np.zeros_like(own), atol=1e-4
        )


def test_the_same_parameters_in_two_formats_are_one_model(tmp_path):
    model, params, _ = golden.load("v1_1")
    theirs = golden.unpack("v1_1", "legacy", tmp_path)
    silent = dataclasses.replace(model.config, end_ids=())
    save_model(tmp_path / "ours", silent, None, params, {})
    one, other = load_models([theirs, tmp_path / "ours"])
    assert one.model == other.model
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def padded(model, params, rows: int):
    """With rows below its tables that no id means."""
    more = lambda x, axis: np.append(x, np.full_like(np.take(x, range(rows), axis), 50), axis)
    wide = {
        **params,
        "token_embedder": {"embedding": more(params["token_embedder"]["embedding"], 0)},
    }
    if not model.config.logits_via_embedding:
        kernel = more(params["decoder"]["logits_dense"]["kernel"], 1)
        wide["decoder"] = {**params["decoder"], "logits_dense": {"kernel": kernel}}
    size = model.vocab_size + rows
    return dataclasses.replace(model.config, vocab_size=size), wide


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_rows_that_pad_the_larger_tables_are_not_produced(tmp_path, capsys, tied, turned):
    model = T5(dataclasses.replace(CONFIG, logits_via_embedding=tied))
    params = [varied(model.init(jax.random.key(i)), i) for i in range(2)]
    save_model(tmp_path / "small", model.config, shipped_vocabulary(), params[0], {})
    config, wide = padded(model, params[1], 16)
    save_model(tmp_path / "large", config, None, wide, {})
    expected = [logits_of(model, params[0]), logits_of(T5(config), wide)]
    assert expected[1].shape[-1] == 4112
    order = [tmp_path / "small", tmp_path / "large"][:: -1 if turned else 1]
    found = load_models(order)
    for loaded, own in zip(found, expected[:: -1 if turned else 1], strict=True):
        assert loaded.model.vocab_size == own.shape[-1]
        assert loaded.vocabulary == shipped_vocabulary()
        logits = logits_of(loaded.model, loaded.params)
        np.testing.assert_allclose(logits[..., :4096], own[..., :4096], atol=1e-5)
        assert (logits[..., 4096:] == UNUSED_LOGIT).all()
    said = capsys.readouterr().err
    sizes = [f"{x.model.vocab_size:,}" for x in found]
    assert f"{order[0]} | {order[1]}: these models differ" in said
    assert f"rows of the embedding tables: {' | '.join(sizes)}\n" in said
    assert "ids from 4,096 on are never produced" in said
    pair = load(order[0], order[1])
    assert (pair.model.vocab_size, pair.model.num_ids) == (4112, 4096)
    logits = logits_of(pair.model, pair.params, 0.5)
    mean = (expected[0] + expected[1][..., :4096]) / 2
    np.testing.assert_allclose(logits[..., :4096], mean, atol=1e-5)
    assert (logits[..., 4096:] == UNUSED_LOGIT).all()


def test_padding_of_two_sizes_is_not_produced(tmp_path, capsys):
    """Both are larger than the vocabulary, as ByT5's and mT5's tables are."""
    model = T5(CONFIG)
    for name, rows in (("a", 32), ("b", 16)):
        config, wide = padded(model, model.init(jax.random.key(0)), rows)
        save_model(tmp_path / name, config, None, wide, {})
    paths = [tmp_path / "a", tmp_path / "b"]
    found = load_models(paths, vocabulary=shipped_vocabulary())
    assert [x.model.vocab_size for x in found] == [4128, 4112]
    assert [x.model.num_ids for x in found] == [4096, 4096]
    assert "ids from 4,096 on are never produced" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"a 4,128, .*b 4,112\).*no checkpoint says.*pass vocabulary="
    ):
        load_models(paths)


def test_tables_of_one_size_are_left_alone(folders, capsys):
    load_models([folders["reference"], folders["same"]])
    assert "differ" not in capsys.readouterr().err


def test_a_table_smaller_than_the_vocabulary_is_refused(tmp_path, folders):
    small = write(tmp_path / "small", None, dataclasses.replace(CONFIG, vocab_size=4095))
    message = r"vocabulary of .*reference has 4,096 ids, the model's tables only 4,095 rows"
    with pytest.raises(ValueError, match=message):
        load(folders["reference"], small)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders of transformers: with our vocabulary, another, and without a tokenizer."""
    root = tmp_path_factory.mktemp("exported")
    other = root / "other.model"
    vocabularies.train(["some words to make other pieces from, and yet more"] * 9, str(other), 76)
    config = dataclasses.replace(CONFIG, end_ids=(1,))
    params = T5(config).init(jax.random.key(0))
    found = {
        "same": shipped_vocabulary(),
        "other": SentencePieceVocabulary(other, 96),
        "silent": None,
    }
    for name, vocabulary in found.items():
        save_hugging_face(root / name, config, vocabulary, params, "float32")
    return root


def test_the_vocabulary_of_a_task_is_not_assumed_where_a_folder_should_say_its_own(
    folders, exported
):
    """A folder of ours without a vocabulary is of a T5X checkpoint: there it is the task's."""
    task = {"vocabulary": shipped_vocabulary(), "task": "docstrings"}
    assert load(exported / "same", folders["reference"], **task).model.end_ids == (1,)
    message = r"silent does not say what its ids mean: it has no tokenizer.json, spiece.model"
    for pair in ((exported / "silent", folders["same"]), (folders["same"], exported / "silent")):
        with pytest.raises(ValueError, match=message):
            load(pair[0], pair[1], **task)
    with pytest.raises(
        ValueError, match="differ at id 3: .* in the model, .* in task 'docstrings'"
    ):
        load(exported / "other", exported / "other", **task)
    named = load(exported / "silent", exported / "silent", vocabulary=task["vocabulary"])
    assert named.vocabulary == task["vocabulary"]


def test_a_rewriter_needs_a_vocabulary(exported):
    with pytest.raises(ValueError, match="silent does not say what its ids mean"):
        load_rewriter(str(exported / "silent"), 8, 8)


@pytest.mark.parametrize("task", ["docstrings", "prose"])
def test_training_does_not_assume_it_either(exported, task):
    """Neither the one named for a task of texts, nor that of a task of ids."""
    named = shipped_vocabulary() if task == "docstrings" else None
    data = TaskData(task, 8, 8, 1, vocabulary=named)
    with pytest.raises(ValueError, match="silent does not say what its ids mean"):
        read_for_data(finished_model(str(exported / "silent"), 0.0), data)
    with pytest.raises(ValueError, match=f"differ at id 3: .* in the model, .* in task '{task}'"):
        read_for_data(finished_model(str(exported / "other"), 0.0), data)
    silent = finished_model(str(exported / "silent"), 0.0)
    with pytest.raises(ValueError, match="silent does not say what its ids mean"):
        read_for_data(silent, TaskData("docstrings", 8, 8, 1))


def test_ids_beyond_the_vocabulary_are_known_where_tables_are_padded(tmp_path):
    """Of one size, so that nothing is cut."""
    vocabulary = dataclasses.replace(shipped_vocabulary(), extra_ids=90)
    paths = [write(tmp_path / name, vocabulary) for name in "ab"]
    pair = load(*paths)
    assert (pair.model.vocab_size, pair.model.num_ids) == (4096, 4090)
