"""Examples of which cutting leaves nothing: left out, counted and said; refused if none is left."""

import dataclasses
import itertools
import logging as python_logging

import jax
import numpy as np
import pytest
import seqio

from dera_jax import log
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import encoding, task_data
from dera_jax.data.documents import keyword_texts
from dera_jax.data.encoding import Sizes
from dera_jax.data.splits import Split
from dera_jax.prompts import Prompt
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.words import KeywordCoverage, WordsInRange
from dera_jax.tasks import jsonl, preferences
from tests.texts import BYTES, SHIPPED, asked, plain_ids

PROMPT = "sum: "
_names = (f"truncation_{i}" for i in itertools.count())


def register(**columns) -> str:
    """A task of summaries, or of pairs if there is a column `rejected`."""
    name, module = next(_names), preferences if "rejected" in columns else jsonl
    module.register_pairs(name, lambda split: columns, ["test"], f"{PROMPT}{{document}}")
    return name


def read(
    name: str, inputs: int = 40, targets: int = 10, tokenizer: Tokenizer = BYTES
) -> task_data.Examples:
    return task_data.epoch(name, "test", tokenizer, Sizes(inputs, targets))


@pytest.fixture
def said(caplog):
    log.clear_logged_warnings()
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        yield lambda: [x.getMessage() for x in caplog.records if "were cut" not in x.getMessage()]


def test_pairs_that_are_equal_once_cut_are_left_out_and_said_with_their_ids(said):
    rows = {
        "document": ["one", "two", "three"],
        "chosen": ["the same start, good", "yes", "the same"],
        "rejected": ["the same start, bad", "no", "the other"],
        "keywords": ["a", "b", "c"],
    }
    name = register(**rows)
    whole = read(name, targets=30)
    assert len(whole) == 3 and encoding.dropped_counts(f"{name}, test") == {} and not said()
    for _ in range(2):  # two epochs
        cut = read(name)
        assert encoding.dropped_counts(f"{name}, test") == {"chosen and rejected are the same": 1}
    assert cut.documents == ["two", "three"] and cut.summaries == ["yes", "the same"]
    for column in ("inputs", "example_id", "keywords"):
        rest = jax.tree.map(lambda x: x[1:], getattr(whole, column))
        jax.tree.map(np.testing.assert_array_equal, getattr(cut, column), rest)
    (message,) = said()
    assert f"{name}, test: DROPPED 1 of 3 examples" in message
    assert message.endswith(f"their ids: {whole.example_id[0]}")


SUMMARIES = {"document": ["a text", "text b"], "summary": ["short", "brief"]}
PAIRS = {"document": ["a", "b"], "chosen": ["same 1", "same 2"], "rejected": ["same 3", "same 4"]}


@pytest.mark.parametrize(
    ("columns", "inputs", "targets", "reason"),
    [
        (SUMMARIES | {"document": ["", ""]}, 40, 9, "empty inputs: 2"),
        (SUMMARIES, 1, 9, "only the prompt is left of the inputs: 2"),
        (SUMMARIES, len(PROMPT) + 1, 9, "only the prompt is left of the inputs: 2"),
        (SUMMARIES, 40, 1, "empty targets: 2"),
        (PAIRS, 40, 5, "chosen and rejected are the same: 2"),
        (PAIRS | {"rejected": ["", ""]}, 40, 9, "empty rejected text: 2"),
    ],
)
def test_a_split_of_which_nothing_is_left_is_refused(columns, inputs, targets, reason):
    name = register(**columns)
    message = f"{name}, test: none of the 2 examples is usable at inputs of "
    with pytest.raises(ValueError, match=f"{message}{inputs} .*{reason}.*raise INPUTS or TARGETS"):
        read(name, inputs, targets)


@pytest.mark.parametrize(
    "template", ["a: {document}", "{document}\n\nTL;DR:", '"{document}" sum:', '{document}", sum:']
)
@pytest.mark.parametrize("tokenizer", [BYTES, SHIPPED])
def test_examples_are_left_out_where_nothing_of_the_document_is_left(tokenizer, template):
    """Also where a quotation mark alone is another token than after a document."""
    name = next(_names)
    columns = {"document": ["zz"], "summary": ["x"]}
    jsonl.register_pairs(name, lambda split: columns, ["test"], template)
    left = []
    for size in range(1, len(tokenizer.encode(template.format(document="zz"))) + 2):
        try:
            left.append(tokenizer.decode(read(name, size, tokenizer=tokenizer).inputs.tokens[0]))
        except ValueError as error:
            assert not left and "only the prompt is left of the inputs: 1" in str(error)
    assert all("z" in text for text in left) and left[-1].count("z") == 2
    assert ["zz" in text for text in left[:2]] == [False, True]


def test_one_token_of_the_document_is_something():
    found = read(register(**SUMMARIES), inputs=len(PROMPT) + 2)
    assert [BYTES.decode(x) for x in found.inputs.tokens] == [f"{PROMPT}a", f"{PROMPT}t"]


def test_a_document_that_has_no_token_is_left_out(said):
    columns = {"document": ["\u200b\u200b", "a tensor"], "summary": ["a tensor", "a value"]}
    found = read(register(**columns), tokenizer=SHIPPED)
    assert found.summaries == ["a value"]
    assert "empty inputs: 1" in said()[0]


@pytest.mark.parametrize(("summaries", "kept"), [(["", "x"], 1), (["", ""], 2), ([" ", "\n"], 2)])
def test_empty_targets_are_left_out_unless_the_split_has_no_others(summaries, kept, said):
    assert len(read(register(document=["a", "b"], summary=summaries))) == kept
    assert len(said()) == (kept == 1)


def test_keywords_that_were_cut_away_are_left_out_and_said_once(said):
    """`wind` never stood in its document, so it is a wish of the task's and stays."""
    columns = {
        "document": ["solar power", "no power", "sun power"],
        "keywords": ["solar\nwind", "no\npower", "power"],
    }
    name = register(**columns, summary=["x", "y", "z"])
    for _ in range(2):
        found = read(name, inputs=len(PROMPT) + 7)
        assert len(found) == 3
        kept = [keyword_texts(row) for row in found.keywords]
        assert kept == [["solar", "wind"], ["no"], []]
    (message,) = said()
    assert (
        f"{name}, test: truncation to 12 tokens removed keywords from 2 of 3 documents" in message
    )
    assert "1 documents have no keyword left" in message


def test_documents_without_keywords_are_no_cases_of_a_reward_about_them(said):
    about = Combined((Part("words", WordsInRange(high=9)), Part("keys", KeywordCoverage())))
    columns = {"document": ["a", "b", "c"], "summary": ["x", "y", "z"]}
    split = Split(register(**columns, keywords=["a", "", "c"]), "test", 40)
    for reward in (None, WordsInRange(high=9)):
        assert len(split.read(BYTES, reward).texts) == 3
    assert sorted(split.read(BYTES, about).texts) == ["a", "c"]
    assert "DROPPED 1 of 3 documents, which have no keywords" in said()[-1]
    none = Split(register(**columns, keywords=["", "", ""]), "test", 40)
    with pytest.raises(ValueError, match="no document has keywords in its first 40 tokens"):
        none.read(BYTES, about)


def test_training_and_evaluation_read_the_same_examples():
    name = register(**PAIRS | {"chosen": ["same 1", "good"]})
    batch = next(task_data.TaskData(name, 9, 5, 2, "test").encoded_by(BYTES).batches(0, 0))
    assert len(set(batch["example_id"].tolist())) == 1


def of_ids(of_texts: str) -> str:
    """A user's own task over bytes."""
    name, task = next(_names), seqio.TaskRegistry.get(of_texts)
    steps = [*task.preprocessors, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
    features = dict.fromkeys(task.output_features, feature)
    seqio.TaskRegistry.add(name, task.source, output_features=features, preprocessors=steps)
    return name


@pytest.mark.parametrize(
    "completions",
    [{"summary": ["short", "brief"]}, {"chosen": ["yes", "yes and"], "rejected": ["no", "not so"]}],
)
def test_a_task_that_yields_ids_is_as_good_as_one_of_texts(completions):
    """A user's own, over the same vocabulary: same arrays; over another, the first piece that differs."""
    columns = {"document": ["one text", "another"], "keywords": ["one\ntext", "another"]}
    of_texts = register(**columns, **completions)
    theirs_name = of_ids(of_texts)
    for inputs in (40, 9):  # 9 cuts both
        ours, theirs = read(of_texts, inputs, 5), read(theirs_name, inputs, 5)
        for column in ("inputs", "targets", "rejected", "keywords", "example_id"):
            arrays = getattr(ours, column), getattr(theirs, column)
            jax.tree.map(np.testing.assert_array_equal, *arrays)
        assert (ours.rejected is None) == ("summary" in completions)
        assert ours.summaries == theirs.summaries and asked(ours) == asked(theirs)
    with pytest.raises(ValueError, match=r"differ at id 0: .* in the model, '<special 0>' in task"):
        read(theirs_name, tokenizer=SHIPPED)


def test_ids_that_are_cut_to_their_end_token_are_left_out():
    name = of_ids(register(**SUMMARIES))
    with pytest.raises(ValueError, match="none of the 2 examples .*the prompt is left.*: 2"):
        read(name, inputs=1)
    assert len(read(name, inputs=2)) == 2


def test_documents_are_kept_uncut_and_alone():
    columns = {"document": ["a long document", "b"], "summary": ["x", "y"]}
    found = read(register(**columns), inputs=len(PROMPT) + 3)
    assert found.inputs.lengths.tolist() == [len(PROMPT) + 3, len(PROMPT) + 2]
    alone = found.document[np.array([1, 0])]
    assert [BYTES.decode(x) for x in alone.tokens] == ["b", "a long document"]
    assert alone.lengths.tolist() == [1, 15]
    (batch,) = itertools.islice(
        task_data.TaskData(register(**columns), 9, 5, 2, "test").encoded_by(BYTES).batches(0, 0), 1
    )
    assert sorted(batch["document"].lengths.tolist()) == [1, 15]


def test_the_template_stays_whole_where_the_document_is_cut():
    name = next(_names)
    columns = {"document": ["a long document", "b"], "summary": ["x", "y"]}
    jsonl.register_pairs(name, lambda split: columns, ["test"], "of {document} in short:")
    for size, cut in ((40, "a long document"), (18, "a lo")):
        found = read(name, inputs=size)
        texts = [BYTES.decode(x) for x in found.inputs.tokens]
        assert texts == [f"of {cut} in short:", "of b in short:"]
        assert found.documents == columns["document"]
        alone = found.document[np.arange(2)]
        assert [BYTES.decode(x) for x in alone.tokens] == columns["document"]


@pytest.mark.parametrize("ends_prompts", [True, False])
@pytest.mark.parametrize("tokenizer", [BYTES, SHIPPED])
def test_control_tokens_that_a_document_spells_are_characters(tokenizer, ends_prompts):
    spelt = "</s> <extra_id_0> <pad> <unk>"
    tokenizer = dataclasses.replace(tokenizer, ends_prompts=ends_prompts)
    name = register(document=[spelt], chosen=[spelt], rejected=[f"no {spelt}"])
    found = read(name, 99, 99, tokenizer)
    control = {i for i, x in enumerate(tokenizer.vocabulary.pieces) if "<extra_id_" in x}
    control |= {tokenizer.vocabulary.padding_id, tokenizer.end_id}
    for column, end in (("inputs", ends_prompts), ("targets", True), ("rejected", True)):
        sequences = getattr(found, column)
        (ids,) = plain_ids(sequences)
        assert not control & set(ids[: len(ids) - end])
        assert ids[-1:] == [tokenizer.end_id] or not end
        assert tokenizer.decode(ids).endswith(spelt)
    assert not control & set(found.document.ids.tolist())


@pytest.mark.parametrize("after", ['" summarize', "</doc>", " and so on", ": in short"])
def test_a_template_is_whole_whatever_follows_the_document(after):
    document = "the shape of the array is preserved" + " and more of it" * 20
    prompt = Prompt(document, f'say "{{document}}{after}')
    ids, cut = SHIPPED.encode_prompt(prompt, 30)
    text = SHIPPED.decode(ids)
    assert len(ids) == 30 and cut > 0
    assert text.startswith('say "the shape') and text.endswith(after)
    whole, none = SHIPPED.encode_prompt(prompt, 999)
    assert none == 0 and len(whole) == len(ids) + cut
