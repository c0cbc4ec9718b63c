"""Train states and finished models on disk: what comes back, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dera_jax.checkpoints import orbax, ship
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.checkpoints.model_folder import restore_replaced, save_model
from dera_jax.checkpoints.orbax import Checkpoints, Saving
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.models.language_model import next_token_logits
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.tasks import vocabularies
from tests.prompts import whole

CONFIG = T5Config(
    vocab_size=300,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=12,
    mlp_activations=("gelu", "linear"),
    end_ids=(1,),
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> SentencePieceVocabulary:
    file = tmp_path_factory.mktemp("pieces") / "own.model"
    vocabularies.train(["some words to make pieces from, and yet more"] * 9, str(file), 76)
    return SentencePieceVocabulary(file, 3, ("<sep>",))


@pytest.fixture
def folder(tmp_path, vocabulary):
    save_model(
        tmp_path / "m", CONFIG, vocabulary, T5(CONFIG).init(jax.random.key(1)), {"loss": 2.5}
    )
    return tmp_path / "m"


def equal(left, right) -> bool:
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), left, right)
    return all(jax.tree.leaves(same))


def test_a_model_is_loaded_in_bfloat16(folder):
    """Parameters and activations; without `dtype` they are what they were."""
    exact, half = load(folder), load(folder, dtype="bfloat16")
    assert (exact.model.config.dtype, half.model.config.dtype) == ("float32", "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    prompts, tokens = whole([[5, 9, 1]]), np.array([[[7, 30]]])
    logits = [next_token_logits(x.model, x.params, prompts, tokens) for x in (exact, half)]
    logits = [x[..., : exact.model.num_ids] for x in logits]
    error = np.abs(logits[0] - logits[1]).max() / np.std(logits[0])
    assert logits[1].dtype == jnp.float32 and 1e-4 < error < 0.1
    with pytest.raises(ValueError, match="load.dtype must be 'float32', 'bfloat16' or None; found"):
        load(folder, dtype="float16")


def test_a_model_comes_back_from_its_folder(folder, vocabulary):
    loaded = load(folder)
    assert loaded.model == T5(CONFIG, num_ids=80)
    assert equal(loaded.params, T5(CONFIG).init(jax.random.key(1)))
    assert loaded.card == {"loss": 2.5}
    assert loaded.vocabulary == SentencePieceVocabulary(folder / "own.model", 3, ("<sep>",))
    assert loaded.vocabulary.content() == vocabulary.content()


def test_bfloat16_is_rounded_once_and_half_the_size(tmp_path, folder):
    params = load(folder).params
    save_model(tmp_path / "half", CONFIG, ByteVocabulary(), params, {}, "bfloat16")
    rounded = jax.tree.map(lambda x: np.asarray(jnp.bfloat16(x), np.float32), params)
    assert equal(load(tmp_path / "half").params, rounded)
    size = lambda name: (tmp_path / name / "model.safetensors").stat().st_size
    assert size("half") < 0.7 * size("m")


@pytest.mark.parametrize("name", ["best/adapter_config.json", "distilled/config.json"])
def test_the_folder_of_a_run_is_not_its_model(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("{}")
    model = re.escape(str((tmp_path / name).parent))
    with pytest.raises(
        FileNotFoundError, match=f"is the folder of a run; load its model from {model}"
    ):
        load(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharpened_model_is_the_model_at_a_lower_temperature(tmp_path, tied):
    model = T5(dataclasses.replace(CONFIG, logits_via_embedding=tied))
    params = model.init(jax.random.key(1))
    save_model(tmp_path / "m", model.config, ByteVocabulary(), params, {"loss": 2.5})
    ship.ship(tmp_path / "m", tmp_path / "sharp", temperature=0.5)
    with pytest.raises(ValueError, match="above 0"):
        ship.ship(tmp_path / "m", tmp_path / "sharp", temperature=0)
    sharp = load(tmp_path / "sharp")
    assert sharp.card == {"temperature": 0.5, "from": {"loss": 2.5}}
    inputs, tokens = jnp.array([[3, 4, 1]]), jnp.array([[[5, 6, 1]]])
    logits = [
        np.asarray(next_token_logits(x, p, whole(inputs), tokens))
        for x, p in ((model, params), (model, sharp.params))
    ]
    assert np.abs(logits[0]).max() > 0.5
    np.testing.assert_allclose(logits[1], 2 * logits[0], atol=0.05)  # bfloat16


def test_a_shipped_vocabulary_is_named_not_copied(tmp_path, vocabulary, monkeypatch):
    (tmp_path / "assets").mkdir()
    file = tmp_path / "assets" / "shipped.model"
    file.write_bytes(vocabulary.content())
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    save_model(
        tmp_path / "m",
        CONFIG,
        SentencePieceVocabulary(file),
        T5(CONFIG).init(jax.random.key(0)),
        {},
    )
    assert sorted(x.name for x in (tmp_path / "m").iterdir()) == [
        "card.json",
        "config.json",
        "model.safetensors",
    ]
    assert load(tmp_path / "m").vocabulary.file == str(file)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"names the vocabulary 'shipped.model'"):
        load(tmp_path / "m")


def test_another_vocabulary_under_the_same_name_is_refused(folder, vocabulary):
    (folder / vocabulary.name).write_bytes(b"other pieces")
    with pytest.raises(ValueError, match="is not the vocabulary that .* was trained with"):
        load(folder)


def test_saving_again_replaces_the_model(folder, vocabulary):
    save_model(folder, CONFIG, vocabulary, T5(CONFIG).init(jax.random.key(2)), {"loss": 1.0})
    assert load(folder).card == {"loss": 1.0}
    assert [x.name for x in folder.parent.iterdir() if x.name.startswith(".")] == []


@pytest.mark.parametrize("killed_at", ["save_file", "first rename", "second rename"])
def test_a_model_is_never_lost_while_it_is_replaced(folder, vocabulary, killed_at, monkeypatch):
    """Killed before the draft is whole, and before and after the old folder is moved aside."""
    renames, inner = [], Path.rename

    def rename(path, target):
        renames.append(target)
        if len(renames) == {"first rename": 1, "second rename": 2}.get(killed_at):
            raise KeyboardInterrupt
        return inner(path, target)

    def save_file(arrays, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", rename)
    if killed_at == "save_file":
        monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
    params = T5(CONFIG).init(jax.random.key(2))
    with pytest.raises(KeyboardInterrupt):
        save_model(folder, CONFIG, vocabulary, params, {"loss": 1.0})
    monkeypatch.undo()
    restore_replaced(folder)
    assert load(folder).card == {"loss": 2.5}
    save_model(folder, CONFIG, vocabulary, params, {"loss": 1.0})
    assert load(folder).card == {"loss": 1.0}
    assert [x.name for x in folder.parent.iterdir() if x.name.startswith(".")] == []


def test_a_missing_or_half_written_model_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder .*nowhere"):
        load(tmp_path / "nowhere")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors: half written or damaged"):
        load(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no complete model: it has no model.safetensors"):
        load(folder)
    (folder / "config.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"config.json: half written or damaged"):
        load(folder)


def test_a_model_of_another_size_is_refused_by_the_first_array(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model"]["mlp_dim"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    expected = r"encoder/layers_0/mlp/wi_0/kernel has shape \(8, 12\) in the checkpoint and has shape \(8, 16\)"
    with pytest.raises(ValueError, match=expected):
        load(folder)


def test_missing_and_superfluous_arrays_are_named():
    with pytest.raises(ValueError, match=r"here: .*b is missing in the checkpoint"):
        check_shapes({"a": (1,)}, [("a", (1,)), ("b", (2,))], "here")
    with pytest.raises(ValueError, match=r"b has shape \(2,\) in the checkpoint and is missing"):
        check_shapes({"a": (1,), "b": (2,)}, [("a", (1,))], "here")


def state(size: int = 3, fill: float = 0.0) -> dict:
    return {"step": jnp.int32(fill), "params": {"w": jnp.full((size,), fill, jnp.float32)}}


def test_the_latest_train_state_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", Saving(1000, 3.0))
    assert checkpoints.restore(state()) is None
    for step in (1, 2, 3):
        checkpoints.save(step, state(fill=step))
    checkpoints.close()
    assert equal(Checkpoints(tmp_path / "c", Saving(1000, 3.0)).restore(state()), state(fill=3))
    assert sorted(x.name for x in (tmp_path / "c").iterdir()) == ["2", "3"]


def test_a_train_state_of_another_size_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, Saving(1000, 3.0))
    checkpoints.save(1, state())
    with pytest.raises(
        ValueError, match=r"params/w has shape \(3,\) in the checkpoint and has shape \(4,\)"
    ):
        checkpoints.restore(state(size=4))


def test_a_damaged_checkpoint_says_what_to_do(tmp_path):
    checkpoints = Checkpoints(tmp_path, Saving(1000, 3.0))
    checkpoints.save(1, state())
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint .*1 cannot be read .*remove that folder"):
        Checkpoints(tmp_path, Saving(1000, 3.0)).restore(state())


@pytest.mark.parametrize("damage", ["cut off", "missing", "empty"])
def test_every_file_of_a_checkpoint_counts_or_is_named(tmp_path, damage):
    """Whatever orbax raises, it is one sentence, which says which folder to remove."""
    checkpoints = Checkpoints(tmp_path / "c", Saving(1000, 3.0))
    checkpoints.save(1, state(fill=5))
    checkpoints.close()
    content = {
        file: file.read_bytes() for file in (tmp_path / "c" / "1").rglob("*") if file.is_file()
    }
    named = 0
    for file, complete in content.items():
        file.write_bytes(complete[: len(complete) // 2 if damage == "cut off" else 0])
        if damage == "missing":
            file.unlink()
        try:
            assert equal(
                Checkpoints(tmp_path / "c", Saving(1000, 3.0)).restore(state()), state(fill=5)
            )
        except ValueError as error:
            named += 1
            assert f"checkpoint {tmp_path}/c/1 cannot be read" in str(error)
            assert "remove that folder to resume" in str(error)
            assert len(str(error)) < 600 and "\n" not in str(error)
        file.write_bytes(complete)
    assert named >= 2


def spoilt_state(fill: float = np.nan) -> dict:
    return {**state(), "params": {"w": jnp.array([0, fill, 1])}, "best_loss": jnp.float32(np.inf)}


def test_a_train_state_that_is_not_finite_is_neither_written_nor_read(tmp_path, monkeypatch):
    """`best_loss` is infinite before the first validation."""
    checkpoints = Checkpoints(tmp_path, Saving(1000, 3.0))
    with pytest.raises(
        FloatingPointError, match=r"after step 1, .* 1 of 3 values of params/w are NaN"
    ):
        checkpoints.save(1, spoilt_state())
    assert checkpoints.restore(spoilt_state()) is None
    checkpoints.save(1, spoilt_state(0.0))
    assert equal(checkpoints.restore(spoilt_state()), spoilt_state(0.0))
    monkeypatch.setattr(orbax, "check_state", lambda *_: None)
    checkpoints.save(2, spoilt_state())
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"checkpoint .*/2 cannot be read \(.*params/w.*NaN.*remove"
    ):
        checkpoints.restore(spoilt_state())


def test_a_checkpoint_is_due_after_steps_or_minutes(tmp_path):
    by_steps = Checkpoints(tmp_path / "a", Saving(steps=5, minutes=60))
    assert [step for step in range(1, 12) if by_steps.is_due(step)] == [5, 10]
    by_time = Checkpoints(tmp_path / "b", Saving(steps=1000, minutes=0))
    assert by_time.is_due(1)
