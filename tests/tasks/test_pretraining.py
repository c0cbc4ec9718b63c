"""Prose: what is read and what is left out; objectives: inputs and targets restore the passage."""

import jax
import numpy as np
import pytest

from dera_jax.data import task_data
from dera_jax.data.encoding import Sizes
from dera_jax.tasks import objectives, pretraining, prose_corpus
from dera_jax.tasks.docstring_corpus import DocstringPair
from tests.texts import SHIPPED

V = 400
SENTINELS = np.arange(V - 1, V - 21, -1, dtype=np.int32)
STOP = 50  # the one piece that ends a sentence
MARKS = objectives.Marks(
    sentinels=SENTINELS,
    ends=np.arange(V) == STOP,
    begins=np.ones(V, bool),
    copy=np.array([3, 9], np.int32),
    find=np.array([4, 9], np.int32),
    gap=np.array([5, 9], np.int32),
)


def _passage(rng, length):
    return rng.integers(60, 300, length).astype(np.int32)


def _fill(inputs, targets):
    """Each sentinel of `inputs` replaced by the tokens that follow it in `targets`."""
    spans, key = {}, None
    for token in targets.tolist():
        if token >= SENTINELS[-1]:
            key = token
            spans[key] = []
        else:
            spans[key].append(token)
    return [t for token in inputs.tolist() for t in spans.get(token, [token])]


@pytest.mark.parametrize("length", [2, 3, 12, 50, 112])
def test_span_corruption_restores_the_passage_and_hides_15_percent(length):
    rng = np.random.default_rng(length)
    for _ in range(50):
        passage = _passage(rng, length)
        inputs, targets = objectives.corrupt(passage, MARKS, rng)
        assert _fill(inputs, targets) == passage.tolist()
        hidden = targets[targets < SENTINELS[-1]]
        assert len(hidden) == max(round(0.15 * length), 1)
        sentinels = targets[targets >= SENTINELS[-1]]
        assert sentinels.tolist() == SENTINELS[: max(round(len(hidden) / 3), 1)].tolist()


def test_every_position_may_be_hidden():
    rng = np.random.default_rng(0)
    counts = np.zeros(40)
    for _ in range(4000):
        passage = np.arange(60, 100, dtype=np.int32)
        targets = objectives.corrupt(passage, MARKS, rng)[1]
        counts[targets[targets < SENTINELS[-1]] - 60] += 1
    # 6 of 40 tokens in two spans: their places are not quite uniform, but none is spared or fixed
    assert np.all((counts > 0.3 * 600) & (counts < 1.5 * 600))


def test_copy_returns_what_stands_between_the_sentinels():
    rng = np.random.default_rng(1)
    for _ in range(50):
        passage = _passage(rng, 40)
        inputs, targets = objectives.copy(passage, MARKS, rng)
        first, second = (inputs.tolist().index(s) for s in SENTINELS[:2])
        assert inputs[:2].tolist() == MARKS.copy.tolist()
        assert inputs[first + 1 : second].tolist() == targets.tolist()
        assert 4 <= len(targets) <= 20
        assert np.delete(inputs, [0, 1, first, second]).tolist() == passage.tolist()


def test_find_continues_the_cue_within_the_passage():
    rng = np.random.default_rng(2)
    for _ in range(50):
        passage = _passage(rng, 40)
        inputs, targets = objectives.find(passage, MARKS, rng)
        border = inputs.tolist().index(SENTINELS[0])
        assert inputs[border + 1 :].tolist() == passage.tolist()
        quoted = inputs[2:border].tolist() + targets.tolist()
        starts = [i for i in range(40) if passage[i : i + len(quoted)].tolist() == quoted]
        assert len(starts) == 1
        assert 1 <= border - 2 <= 3


def test_a_repeated_cue_is_lengthened():
    passage = np.tile(np.array([61, 62, 63, 64], np.int32), 8)
    cues = [
        objectives.find(passage, MARKS, np.random.default_rng(seed))[0].tolist()
        for seed in range(20)
    ]
    assert {cue.index(SENTINELS[0]) - 2 for cue in cues} == {3}


def test_gap_picks_the_sentence_that_shares_most_with_the_rest():
    words = {"a": range(100, 110), "b": range(120, 130), "c": [100, 101, 102, 120, 121, 122]}
    passage = np.array([t for key in "abc" for t in [*words[key], STOP]], np.int32)
    shown = set()
    for seed in range(20):
        inputs, targets = objectives.gap(passage, MARKS, np.random.default_rng(seed))
        assert targets.tolist() == [*words["c"], STOP]
        replaced = SENTINELS[0] in inputs
        body = inputs[2:].tolist()
        assert body == passage[:22].tolist() + ([SENTINELS[0]] if replaced else targets.tolist())
        shown.add(replaced)
    assert shown == {True, False}


def test_gap_without_sentences_copies():
    passage = _passage(np.random.default_rng(0), 20)
    inputs, _ = objectives.gap(passage, MARKS, np.random.default_rng(0))
    assert inputs[:2].tolist() == MARKS.copy.tolist()


def test_objectives_are_drawn_by_their_shares():
    rng = np.random.default_rng(3)
    passage = np.concatenate([_passage(rng, 20), [STOP], _passage(rng, 20)]).astype(np.int32)
    starts = [int(objectives.draw(passage, MARKS, rng)[0][0]) for _ in range(2000)]
    shares = [starts.count(prefix[0]) / 2000 for prefix in (MARKS.copy, MARKS.find, MARKS.gap)]
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.5], atol=0.034)  # three standard deviations


def test_paragraphs_are_packed_in_order_and_long_ones_are_cut():
    paragraphs = [[1] * 30, [2] * 20, [3] * 30, [4] * 150, [5] * 5]
    packed = pretraining.pack(paragraphs)
    assert [len(p) for p in packed] == [50, 30, 64, 64, 27]
    flat = [token for passage in packed for token in passage]
    assert flat == [token for paragraph in paragraphs for token in paragraph]


@pytest.fixture
def small_prose(monkeypatch):
    """Random passages and headlines in place of the installed packages' prose."""
    rng = np.random.default_rng(0)
    columns = {}
    for name, length in (("passages", 40), ("documents", 30), ("summaries", 8)):
        columns[name] = rng.integers(10, 3900, 12 * length).astype(np.int16)
        columns[f"{name}_ends"] = np.arange(1, 13) * length
    monkeypatch.setattr(pretraining, "tokens", lambda split: columns)
    return columns


def test_an_epoch_is_a_function_of_the_seed(small_prose):
    read = lambda seed: task_data.epoch("prose", "train", SHIPPED, Sizes(128, 40), seed)
    first, again, other = map(read, (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first.inputs, again.inputs)
    jax.tree.map(np.testing.assert_array_equal, first.targets, again.targets)
    ids, others = first.inputs.tokens, other.inputs.tokens
    assert (ids[:12] != others[:12]).any(axis=1).mean() > 0.9
    np.testing.assert_array_equal(ids[12:], others[12:])  # headlines stay
    assert ids[12, :31].tolist() == [*small_prose["documents"][:30].tolist(), 1]
    assert first.targets.tokens[12, :9].tolist() == [*small_prose["summaries"][:8].tolist(), 1]
    assert (first.inputs.lengths[12], first.targets.lengths[12]) == (31, 9)


def test_marks_of_the_shipped_vocabulary():
    marks = pretraining.vocabulary_marks()
    assert marks.sentinels[:2].tolist() == [4095, 4094]
    assert len(marks.ends) == len(marks.begins) == 4096
    tokenizer = pretraining.vocabularies.docstrings_vocabulary().tokenizer
    sentence = np.array(tokenizer.encode("It ends. Another begins."), np.int32)
    spans = objectives.sentences(sentence, marks)
    texts = [tokenizer.decode(sentence[start:stop].tolist()) for start, stop in spans]
    assert texts == ["it ends.", "another begins."]


HELD = DocstringPair(
    "spread(a): The spread is the largest value minus the smallest one along an axis.",
    "Compute the spread.",
    "f.py",
)


@pytest.mark.parametrize(
    ("passage", "allowed"),
    [
        (
            f"The spread is the largest value minus the smallest {' '.join(map(str, range(40)))}",
            False,
        ),
        ("compute the spread", False),
        (
            "The spread is the largest value. Sort.",
            False,
        ),  # more than two fifths of its runs of five
        ("The spread of prices is the difference between what buyers offer and sellers ask.", True),
    ],
)
def test_prose_that_shares_wording_with_a_held_out_document_is_left_out(passage, allowed):
    assert prose_corpus.Held.of_pairs([HELD]).allows(passage) == allowed


def test_a_file_gives_docstrings_of_all_sections_comments_and_headlines(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""What the module holds."""\n'
        "# A comment goes on\n# over two lines.\n\n# Another one.\n"
        "x = 1  # not this\n\n"
        "def f(a):\n"
        '    """Does one thing well.\n\n'
        "    The body says what thing it does and how well, at some length, to count as one.\n\n"
        "    Raises:\n        ValueError: for a reason.\n"
        '    """\n'
    )
    paragraphs, headlines = prose_corpus.read(path)
    assert paragraphs == [
        "What the module holds.",
        "Does one thing well.",
        "The body says what thing it does and how well, at some length, to count as one.",
        "ValueError: for a reason.",
        "A comment goes on over two lines.",
        "Another one.",
    ]
    assert [pair.summary for pair in headlines] == ["does one thing well."]


def test_header_comments_and_metadata_are_read(tmp_path):
    header, metadata = tmp_path / "a.h", tmp_path / "METADATA"
    header.write_text("/* First part\n * goes on. */\nint x;\n// Second part.\n")
    metadata.write_text("Name: x\nVersion: 1\n\nThis package does something.\n")
    assert prose_corpus.read(header)[0] == ["First part goes on.", "Second part."]
    assert prose_corpus.read(metadata)[0] == ["This package does something."]
