"""Strings in, rows out: the methods of what `dera_jax.load` returns are the functions of arrays below them."""

import dataclasses
import importlib.util
import json
import linecache
from pathlib import Path

import numpy as np
import pandas
import pytest

import dera_jax
from dera_jax import demo_t5
from dera_jax.data.example_ids import hashed_id
from dera_jax.data.own_files import trained_template
from dera_jax.decoding.sampling import Sampling, sample, sweep_hypotheses
from dera_jax.evaluation import record_store
from dera_jax.models.language_model import Prompts, pad_sequences, sequence_keys
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.length import LengthInRange
from dera_jax.texts import Rows

DOCUMENTS = [
    "flip(m, axis): the shape of the array is preserved, but the elements are reordered.",
    "sort(a): returns a sorted copy of an array.",
]
ASKED = {"template": "summarize: {document}", "max_length": 12}


@pytest.fixture(scope="module")
def pair():
    return dera_jax.load(demo_t5.ASSETS / "reference", demo_t5.ASSETS / "aligned")


@pytest.fixture(scope="module")
def model():
    return dera_jax.load(demo_t5.ASSETS / "reference")


def near_six(documents, texts):
    """A reward in Python: as near to six words as possible."""
    return [-abs(len(text.split()) - 6) for text in texts]


def test_samples_are_those_of_the_function_of_arrays(pair):
    rows = pair.sample(DOCUMENTS, lam=[0, 2], num_samples=2, seed=3, **ASKED)
    lam, numbers = sweep_hypotheses([0.0, 2.0], 2, batch=2)
    ids = [pair.encode_prompt(f"summarize: {x}", 64).ids for x in DOCUMENTS]
    keys = sequence_keys(3, np.array([hashed_id(x) for x in DOCUMENTS], np.int32), numbers)
    prompts = Prompts(*pad_sequences(ids, 64), lam)
    out = sample(pair.model, pair.params, prompts, keys, Sampling(12))
    expected = [
        (DOCUMENTS[b], (0.0, 2.0)[k // 2], k % 2, pair.decode(out.tokens[b, k].tolist()))
        for b in range(2)
        for k in range(4)
    ]
    assert [(r["document"], r["lam"], r["sample"], r["text"]) for r in rows] == expected
    lengths = np.asarray(out.lengths - out.finished).ravel().tolist()
    assert [row["length"] for row in rows] == lengths
    np.testing.assert_allclose(
        [r["kl"] for r in rows], np.sum(out.scores.kl, -1).ravel(), atol=1e-4
    )
    assert {"log_prob", "finished"} <= set(rows[0]) and "reward" not in rows[0]
    prompts = [len(x) for x in ids for _ in range(4)]
    costs = [2 * (n + length) for n, length in zip(prompts, out.lengths.ravel(), strict=True)]
    assert [row["forward_tokens"] for row in rows] == costs  # of both models


def test_one_string_a_generator_and_dicts_are_documents(model):
    one = model.sample(DOCUMENTS[0], greedy=True, **ASKED)
    both = model.sample((x for x in DOCUMENTS), greedy=True, batch_size=1, **ASKED)
    assert [row["text"] for row in one] == [both[0]["text"]] and len(both) == 2
    assert one[0]["lam"] is None and "kl" not in one[0]
    rows = model.sample({"document": DOCUMENTS[0], "summary": "flips"}, greedy=True, **ASKED)
    assert rows[0]["summary"] == "flips" and rows[0]["text"] == one[0]["text"]


@pytest.mark.slow
def test_methods_return_the_best_text(pair, tmp_path):
    """By a reward in Python; λ is 1 unless it is given, and a folder keeps the records."""
    samples = pair.sample(DOCUMENTS, num_samples=4, reward=near_six, folder=tmp_path, **ASKED)
    best = pair.best_of_n(DOCUMENTS, 4, near_six, **ASKED)
    for i, row in enumerate(best):
        own = samples[4 * i : 4 * i + 4]
        assert row["lam"] == own[0]["lam"] == 1.0
        assert row["reward"] == max(x["reward"] for x in own) == near_six([""], [row["text"]])[0]
    assert (tmp_path / "records.jsonl").exists()
    weight, folder = {"reward_weight": 50.0, "lookahead": 4}, tmp_path / "search"
    found = pair.search(DOCUMENTS[0], near_six, folder=folder, **weight, **ASKED)
    (record,) = record_store.read(folder)
    assert record["n_best"][0]["text"] == found[0]["text"] and "n_best" not in found[0]
    assert found[0]["reward"] >= best[0]["reward"] and found[0]["forward_tokens"] > 0
    evolved = pair.evolve(DOCUMENTS, near_six, lam=0, population=3, period=4, survivors=1, **ASKED)
    assert len(evolved) == 2 and evolved[0]["lam"] == 0


def test_a_sweep_has_a_row_of_means_for_each_lam(pair, tmp_path):
    rows = pair.sweep(DOCUMENTS, [0, 1], 2, LengthInRange(4, 8), **ASKED)
    assert [row["lam"] for row in rows] == [0, 1] and rows[0]["samples"] == 4
    rows.to_jsonl(tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[1])["lam"] == 1


def test_prompts_are_those_of_the_training_on_files(model, capsys):
    """As the card says, which is printed; `template` sets another, and no card means the document."""
    card = {"data": {"files": {"template": "summarize: {document}"}}}
    trained = dataclasses.replace(model, card=card)
    texts = lambda m, **more: [
        x["text"] for x in m.sample(DOCUMENTS, max_length=12, greedy=True, **more)
    ]
    asked = texts(model, template="summarize: {document}")
    assert "prompts are written" not in capsys.readouterr().err
    assert texts(trained) == asked
    assert "as in training: 'summarize: {document}'" in capsys.readouterr().err
    bare = texts(model)
    assert bare == texts(trained, template="{document}") and bare != asked
    assert "prompts are written" not in capsys.readouterr().err


def test_templates_of_several_models():
    card = lambda template: {"data": {"files": {"template": template}}}
    assert trained_template([{}, {"data": {"task": "x"}}]) is None
    assert trained_template([card("a {document}"), {}]) == "a {document}"
    assert trained_template([card("a {document}"), card("b {document}")]) == "b {document}"


def test_a_reward_that_was_edited_is_another_run(model, tmp_path):
    """Its records would be those of the earlier function."""
    sample = lambda reward: model.sample(
        DOCUMENTS, reward=reward, folder=tmp_path / "kept", **ASKED
    )
    versions = []
    for goal in (6, 9):
        (tmp_path / "edited.py").write_text(
            f"def near(documents, texts):\n    return [-abs(len(x) - {goal}) for x in texts]\n"
        )
        spec = importlib.util.spec_from_file_location("edited", tmp_path / "edited.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        linecache.clearcache()
        versions.append(HostReward(module.near))
    assert sample(versions[0]) == sample(versions[0])
    with pytest.raises(FileExistsError, match="the source of .* has changed"):
        sample(versions[1])


def test_a_reward_without_source_is_known_by_its_code():
    """As in an interactive session; a constant of a function inside of it counts too."""
    made = lambda source: HostReward(eval(source, {}))
    inner = "lambda documents, texts: [(lambda x: -abs(len(x) - {}))(x) for x in texts]"
    first, same, other = (made(inner.format(x)).source_sha256 for x in (6, 6, 9))
    assert first == same != other


def test_a_pair_is_printed_in_one_line(pair, model):
    assert repr(pair).startswith("TextPair(reference=") and len(repr(pair)) < 300
    assert repr(model).startswith("TextModel(model=") and len(repr(model)) < 200


def test_files_of_documents_are_read_for_the_methods(pair, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"document": "b c", "summary": "d"}\n')
    read = dera_jax.read_documents(tmp_path / "a.jsonl")
    assert read == [{"document": "b c", "summary": "d"}]
    assert pair.sample(read, max_length=2, folder=tmp_path / "out")[0]["summary"] == "d"
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["data"][0] == str(tmp_path / "a.jsonl")


def test_every_call_says_what_it_truncates(model, caplog):
    """Also the second one of a process, with the same limit and as many documents."""
    for word in ("a", "b"):
        caplog.clear()
        model.sample(f"{word} " * 40, max_prompt=8, greedy=True, max_length=4)
        assert "1 of 1 inputs are longer than 8 tokens and were cut" in caplog.text


def test_a_long_summary_widens_nothing_but_itself(model, caplog):
    document = {"document": DOCUMENTS[0], "summary": "word " * 90}
    (row,) = model.sample(document, greedy=True, **ASKED)
    assert row["text"] == model.sample(DOCUMENTS[0], greedy=True, **ASKED)[0]["text"]
    assert "were cut" not in caplog.text


def test_methods_with_one_strength_take_one_aligned_model(pair):
    three = dataclasses.replace(pair, components=(*pair.components, pair.components[1]))
    with pytest.raises(ValueError, match="takes a reference and one aligned model"):
        three.best_of_n(DOCUMENTS, 2, near_six)


def test_best_of_n_has_no_prompt_or_greedy_of_its_own(model):
    for name in ("prompt", "greedy"):
        with pytest.raises(TypeError, match=f"best_of_n.. has no setting '{name}'"):
            model.best_of_n(DOCUMENTS, 2, near_six, **{name: "a {document}"})


def test_aligned_models_have_no_name():
    with pytest.raises(TypeError, match="follow the reference without a name"):
        dera_jax.load("a", aligned="b")


def test_rows_become_a_data_frame():
    frame = Rows([{"text": "a", "reward": 1.0}, {"text": "b", "reward": 2.0}]).to_pandas()
    assert list(frame.columns) == ["text", "reward"]
    assert frame["text"].tolist() == ["a", "b"] and frame["reward"].mean() == 1.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"documents": 5}, TypeError, "documents must be a string or an iterable of strings; found 5"),
        ({"documents": "mine.jsonl"}, TypeError, r"give dera_jax.read_documents\('mine.jsonl'\)"),
        ({"documents": Path("mine.txt")}, TypeError, r"give dera_jax.read_documents\('mine.txt'\)"),
        ({"documents": pandas.DataFrame({"document": ["a"]})}, TypeError, "give its rows: documents.to_dict"),
        ({"documents": []}, ValueError, "documents must have at least one text"),
        ({"documents": ["a", " "]}, ValueError, r"documents\[1\] is empty"),
        ({"documents": [["a"]]}, TypeError, r"documents\[0\] must be a string, or a dict"),
        ({"documents": {"document": "a", "sumary": ""}}, ValueError, "has 'sumary'; known fields"),
        ({"temprature": 1}, TypeError, "no setting 'temprature'; did you mean 'temperature'"),
        ({"max_lenght": 1}, TypeError, "no setting 'max_lenght'; did you mean 'max_length'"),
        ({"n": 1}, TypeError, "no setting 'n'. Its settings: documents, lam, num_samples, reward, max_length, "),
        ({"documents": {"document": "a", "keywords": "solar power"}}, TypeError, r"documents\[0\]: 'keywords' must be a list"),
        ({"documents": {"document": "a", "summary": float("nan")}}, TypeError, r"documents\[0\]: 'summary' must be a string or None"),
        ({"documents": [{"document": "a", "keywords": ["b"]}, {"document": "c", "keywords": None}]}, ValueError, r"documents\[1\] has no keywords, and"),
        ({"lam": []}, ValueError, r"lam must be a number or several; found \[\]"),
        ({"reward": "words:5"}, ValueError, "reward 'words:5': expected a range"),
        ({"documents": [{"document": "a", "summary": "b"}, "c"]}, ValueError, r"documents\[1\] has no summary, and"),
        ({"reward": 3}, TypeError, "reward must be a reward of dera_jax.rewards, a name such as"),
        ({"lam": [0.5, 0.5]}, ValueError, "Sweep.lams"),
        ({"lam": [[0.5, 0.5]]}, ValueError, "for M aligned models"),
        ({"max_prompt": 2}, ValueError, "max_prompt = 2 leaves no token of documents.0."),
        ({"template": "no slot"}, ValueError, "has no slot {document}"),
        ({"template": "{keywords}: {document}"}, ValueError, "has the slot {keywords}, but"),
        ({"documents": "a\ud83d"}, ValueError, r"documents\[0\]: 'document' is not valid Unicode"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(pair, arguments, error, message):
    with pytest.raises(error, match=message):
        pair.sample(**{"documents": DOCUMENTS, **ASKED, **arguments})


def test_one_model_has_no_lam_and_a_search_one_only(pair, model):
    with pytest.raises(ValueError, match="lam is for a pair of models; this is one model"):
        model.sample(DOCUMENTS, lam=0.5)
    with pytest.raises(ValueError, match="lam must be one number here"):
        pair.search(DOCUMENTS, near_six, lam=[0, 1])
    with pytest.raises(ValueError, match="needs a reward"):
        pair.best_of_n(DOCUMENTS, 2, None)
