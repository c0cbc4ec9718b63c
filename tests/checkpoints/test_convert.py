"""The command line that rewrites checkpoints: nothing changes on the way, and nothing is lost."""

import dataclasses
import json
import shlex
import subprocess
import sys

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import pytest
import sentencepiece

from dera_jax import command
from dera_jax.checkpoints import convert
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.models.t5_lm import T5
from dera_jax.shipped import ASSETS
from dera_jax.tasks import vocabularies
from tests import golden

flat = lambda tree: flax.traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture
def run(monkeypatch):
    """Runs the command in this process."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        convert.main()

    return command


def bits(tree) -> dict[str, bytes]:
    return {name: np.asarray(x).tobytes() for name, x in flat(tree).items()}


@pytest.mark.parametrize(
    ("version", "kind"), [("v1_0", "orbax"), ("v1_1", "legacy"), ("v1_0", "legacy_bf16")]
)
def test_no_bit_changes_on_the_way_from_t5x_to_hugging_face_and_back(version, kind, run, tmp_path):
    pieces = tmp_path / "pieces.model"
    vocabularies.train(["some words to make pieces from, and yet more"] * 9, pieces, 76)
    source, ours = golden.unpack(version, kind, tmp_path / "source"), tmp_path / "ours"
    run(source, ours, "--vocabulary", pieces, "--extra_ids", 20)
    run(ours, tmp_path / "theirs", "--to", "hugging_face")
    run(tmp_path / "theirs", tmp_path / "again", "--to", "dera_jax")
    model, expected = golden.load(version)[0], load(source)
    if not kind.endswith("bf16"):
        assert bits(expected.params) == bits(golden.load(version)[1])
    for name, format_ in (("ours", "dera_jax"), ("theirs", "Hugging Face"), ("again", "dera_jax")):
        assert open_checkpoint(tmp_path / name).kind == format_
        found = load(tmp_path / name)
        assert found.model == T5(dataclasses.replace(model.config, end_ids=(1,)), num_ids=96)
        assert bits(found.params) == bits(expected.params)
        assert found.vocabulary.extra_ids == 20
        assert found.vocabulary.content() == pieces.read_bytes()
        assert found.vocabulary.file.startswith(str(tmp_path / name))
    assert load(ours).card == {"imported_from": str(source)}


def test_bfloat16_is_half_the_size_and_rounded_once(run, tmp_path):
    source = golden.unpack("v1_1", "legacy", tmp_path)
    run(source, tmp_path / "half", "--dtype", "bfloat16")
    run(tmp_path / "half", tmp_path / "theirs", "--dtype", "bfloat16", "--to", "hugging_face")
    expected = {
        name: np.asarray(x.astype(ml_dtypes.bfloat16), np.float32).tobytes()
        for name, x in flat(golden.load("v1_1")[1]).items()
    }
    for name in ("half", "theirs"):
        assert bits(load(tmp_path / name).params) == expected
        assert (tmp_path / name / "model.safetensors").stat().st_size < 2.2 * 88_800
        assert load(tmp_path / name).model.config.dtype == "float32"  # of activations


def test_a_vocabulary_of_bytes(run, tmp_path):
    config = dataclasses.replace(golden.load("v1_1")[0].config, vocab_size=260)
    source, params = tmp_path / "source", T5(config).init(jax.random.key(0))
    save_model(source, config, None, params, {})
    run(source, tmp_path / "ours", "--vocabulary", "bytes")
    run(tmp_path / "ours", tmp_path / "theirs", "--to", "hugging_face")
    assert load(tmp_path / "ours").vocabulary == ByteVocabulary()
    assert load(tmp_path / "theirs").vocabulary == ByteVocabulary()
    run(source, tmp_path / "silent")
    assert load(tmp_path / "silent").vocabulary is None


def test_start_and_end_token_are_written_back_as_they_were(run, tmp_path):
    """Through a folder of ours; ids that are not T5's."""
    config = dataclasses.replace(golden.load("v1_1")[0].config, start_token=5, end_ids=(7,))
    save_hugging_face(tmp_path / "theirs", config, None, golden.load("v1_1")[1], "float32")
    run(tmp_path / "theirs", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "again", "--to", "hugging_face")
    assert load(tmp_path / "again").model == load(tmp_path / "ours").model == T5(config)
    for name in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / "again" / name).read_text())
        found = (said["decoder_start_token_id"], said["eos_token_id"], said["pad_token_id"])
        assert found == (5, 7, 0)


def test_what_is_there_is_not_written_over(run, tmp_path):
    source = golden.unpack("v1_1", "legacy", tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("dear")
    for to in convert.KINDS:
        with pytest.raises(SystemExit, match=f"error: {target} exists; choose another folder"):
            run(source, target, "--to", to)
    assert [x.name for x in target.iterdir()] == ["mine"]


def test_another_vocabulary_than_the_checkpoint_names_is_refused(run, tmp_path):
    pieces = tmp_path / "pieces.model"
    vocabularies.train(["some words to make pieces from, and yet more"] * 9, pieces, 76)
    source = golden.unpack("v1_1", "legacy", tmp_path / "source")
    run(source, tmp_path / "a", "--vocabulary", pieces, "--extra_ids", 3)
    with pytest.raises(SystemExit, match=r"error: vocabularies differ at id 76: .*'<extra_id_1>'"):
        run(tmp_path / "a", tmp_path / "b", "--vocabulary", pieces, "--extra_ids", 2)
    with pytest.raises(SystemExit, match=r"has 259 ids, the model's tables only 128 rows"):
        run(source, tmp_path / "b", "--vocabulary", "bytes")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("flag", ["--extra_ids", "--extra-ids"])
def test_sentinels_are_added_by_either_spelling_of_the_flag(flag, run, tmp_path):
    config = dataclasses.replace(golden.load("v1_1")[0].config, vocab_size=384)
    save_model(tmp_path / "source", config, None, T5(config).init(jax.random.key(0)), {})
    run(tmp_path / "source", tmp_path / "ours", "--vocabulary", "bytes", flag, 125)
    assert load(tmp_path / "ours").vocabulary == ByteVocabulary(125)


def test_flags_cannot_be_abbreviated(run, tmp_path, capsys):
    for flag, value in (("--vocab", "bytes"), ("--extra", "3"), ("--dty", "bfloat16")):
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path / "source", tmp_path / "target", flag, value)
        assert f"unrecognized arguments: {flag} {value}" in capsys.readouterr().err


def test_an_error_is_one_line(tmp_path):
    command = [sys.executable, "-m", "dera_jax.checkpoints.convert", f"{tmp_path}/no", "target"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: no model folder {tmp_path}/no\n"


def test_the_help_has_examples_that_run(tmp_path, monkeypatch):
    """With a small checkpoint of T5X, whose 128 ids have room for 24 pieces and 100 sentinels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reference").symlink_to(ASSETS / "reference")
    checkpoint = golden.unpack("v1_1", "legacy", tmp_path / "t5_1_1_small")
    checkpoint.rename(checkpoint.with_name("checkpoint_1000000"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to make pieces from, and yet more"] * 9),
        model_prefix="sentencepiece", vocab_size=24, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    description, _, examples = convert._parser().format_help().partition("\nexamples:\n")
    assert "dera-jax convert" not in description.replace("usage: dera-jax convert", "")
    for line in examples.splitlines():
        program, *words = shlex.split(line)
        assert program == "dera-jax"
        command.main(words)
    kinds = {x: open_checkpoint(tmp_path / x).kind for x in ("t5_small", "exported", "my_half")}
    assert kinds == {"t5_small": "dera_jax", "exported": "Hugging Face", "my_half": "dera_jax"}
    assert load(tmp_path / "t5_small").vocabulary.extra_ids == 100
    assert bits(load(tmp_path / "exported").params) == bits(load(ASSETS / "reference").params)
