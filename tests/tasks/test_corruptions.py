"""Corrupted summaries against the known facts, and against the texts they are made of."""

import json
import random
import re
from collections import Counter

import pytest
import seqio

from dera_jax.tasks import corruptions, docstring_corpus, docstrings, newswire, newswire_words
from dera_jax.tasks.newswire_corpus import check

SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")  # all that is known under other versions of the packages


def rows(columns):
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


@pytest.fixture(scope="module", params=HELD_OUT)
def docstring_rows(request):
    return request.param, rows(corruptions.docstrings_pairs(request.param))


@pytest.fixture(scope="module", params=SPLITS)
def newswire_rows(request):
    return request.param, rows(corruptions.newswire_pairs(request.param))


def words(text):
    return re.findall(r"\w+", text)


def changed(row):
    """The words that differ, if the two texts are equally long; else None."""
    one, other = words(row["chosen"]), words(row["rejected"])
    if len(one) != len(other):
        return None
    return [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]


def test_newswire_pairs_are_the_corpus_and_every_rejected_one_is_false(newswire_rows):
    split, found = newswire_rows
    assert [row["document"] for row in found] == [r.document for r in newswire.reports(split)]
    assert [row["chosen"] for row in found] == [r.summary for r in newswire.reports(split)]
    for row in found:
        facts = json.loads(row["facts"])
        assert check(row["chosen"], facts).faithful
        assert not check(row["rejected"], facts).faithful


def test_newswire_changes_are_of_the_kind_they_say(newswire_rows):
    split, found = newswire_rows
    summaries = {report.summary: report.facts["kind"] for report in newswire.reports(split)}
    for row in found:
        facts = json.loads(row["facts"])
        if row["corruption"] == "other":
            assert summaries[row["rejected"]] == facts["kind"]
            continue
        ((old, new),) = changed(row)
        assert old in facts.values() and new not in words(row["chosen"])
        assert old.isdigit() == new.isdigit() == (row["corruption"] == "number")
        slots = newswire_words.KINDS[facts["kind"]].slots.values()
        assert any({old, new} <= set(values) for values in slots)
        assert not check(row["rejected"], facts).loose  # the phrases are whole still


def test_newswire_swaps_take_values_of_the_document_too(newswire_rows):
    _, found = newswire_rows
    swaps = [row for row in found if row["corruption"] == "swap"]
    inside = [row for row in swaps if changed(row)[0][1] in words(row["document"])]
    assert 0.03 < len(inside) / len(swaps) < 0.5


def test_newswire_draws_all_kinds(newswire_rows):
    _, found = newswire_rows
    counts = Counter(row["corruption"] for row in found)
    assert counts.keys() == {"swap", "number", "other"}
    assert min(counts.values()) > 0.15 * len(found)


def test_docstring_pairs_are_the_corpus(docstring_rows):
    split, found = docstring_rows
    pairs = docstrings.pairs(split)
    assert [row["document"] for row in found] == [pair.document for pair in pairs]
    assert [row["chosen"] for row in found] == [pair.summary for pair in pairs]
    assert all(row["chosen"].split() != row["rejected"].split() for row in found)


def test_docstring_changes_are_of_the_kind_they_say(docstring_rows):
    split, found = docstring_rows
    pairs = docstrings.pairs(split)
    summaries = {pair.summary for pair in pairs}
    known = {word for pair in pairs for word in words(pair.document + " " + pair.summary)}
    counts = Counter(row["corruption"] for row in found)
    assert counts["swap"] > 90 and counts["other"] > 90 and counts["number"] > 0
    for row in found:
        if row["corruption"] == "other":
            assert row["rejected"] in summaries
            assert docstring_corpus.support(row["document"], row["rejected"]) < 0.6
            continue
        ((old, new),) = changed(row)
        if row["corruption"] == "number":
            shape = [re.sub(r"\d+", "0", word) for word in (old, new)]
            assert shape[0] == shape[1]
        else:
            assert old in words(row["document"]) and docstrings.is_content(old)
            assert new in known and docstrings.is_content(new)
            assert new not in words(row["chosen"])


def test_docstring_swaps_prefer_words_of_the_document(docstring_rows):
    _, found = docstring_rows
    swaps = [
        changed(row)[0][1] in words(row["document"]) for row in found if row["corruption"] == "swap"
    ]
    assert sum(swaps) > 0.4 * len(swaps)


def test_swapped_words_were_seen_between_these_neighbours():
    pairs = [
        docstring_corpus.DocstringPair(
            "f(a): reads the blue lamp and keeps the green door.", "reads a lamp.", ""
        ),
        docstring_corpus.DocstringPair("g(a): says a door.", "says nothing more.", ""),
    ]
    neighbours = corruptions._Neighbours(pairs)
    assert neighbours.swap(pairs[0], random.Random(0)) == "reads a door."
    assert neighbours.swap(pairs[1], random.Random(0)) is None


@pytest.mark.parametrize(
    "other, fits",
    [
        ("door", True),
        ("doors", False),  # another form
        ("lamplight", False),  # much the same word
        ("value", False),  # true of everything
        ("lamp", False),  # the word itself
        ("using", False),  # not a content word
        ("tensor", True),
    ],
)
def test_words_that_may_take_anothers_place(other, fits):
    pair = docstring_corpus.DocstringPair(f"f(a): turns a lamp or a {other}.", "turns a lamp.", "")
    found = corruptions._Neighbours([pair]).swap(pair, random.Random(0))
    assert found == (f"turns a {other}." if fits else None)


def test_synonyms_do_not_take_each_others_place():
    for one, other, fits in (("tensor", "array", False), ("tensor", "string", True)):
        pair = docstring_corpus.DocstringPair(
            f"f(a): splits a {one} or a {other}.", f"splits a {one}.", ""
        )
        found = corruptions._Neighbours([pair]).swap(pair, random.Random(0))
        assert found == (f"splits a {other}." if fits else None)


@pytest.mark.parametrize("summary", ["turns.", "a turns.lamp.", "a turns-lamp."])
def test_first_words_and_parts_of_names_are_left_alone(summary):
    document = f"turns a lamp. moves. a moves.lamp. a moves-lamp. {summary}"
    pair = docstring_corpus.DocstringPair(document, summary, "")
    first = docstring_corpus.DocstringPair("moves.", "moves.", "")
    assert corruptions._Neighbours([pair, first]).swap(pair, random.Random(0)) is None


def test_endings():
    found = {word: corruptions._ending(word) for word in ("keys", "class", "string", "padding")}
    assert found == {"keys": "s", "class": "", "string": "", "padding": "ing"}


def test_a_foreign_line_is_foreign():
    own = docstring_corpus.DocstringPair("f(): opens green doors.", "paints walls.", "")
    true_too = docstring_corpus.DocstringPair("g(): opens them.", "opens green doors.", "")
    false = docstring_corpus.DocstringPair("h(): counts them.", "counts green lamps.", "")
    for seed in range(20):
        rng = random.Random(seed)
        assert corruptions._foreign_line(own, [own, true_too, false], rng) == false.summary


@pytest.mark.parametrize(
    "summary, allowed",
    [
        ("pools 2d data.", {"pools 1d data.", "pools 3d data."}),
        ("makes float64 of it.", {"makes float16 of it.", "makes float32 of it."}),
        ("adds 1.", {f"adds {n}." for n in (0, 2, 3, 4)}),
        ("takes the l2 norm.", {f"takes the l{n} norm." for n in (0, 1, 3, 4, 5)}),
        ("keeps x1 and version 1.5.", {None}),
        ("has no number.", {None}),
    ],
)
def test_changed_numbers(summary, allowed):
    found = {corruptions._change_number(summary, random.Random(seed)) for seed in range(40)}
    assert found == allowed


def test_nothing_but_chance_of_the_document_decides():
    first = corruptions.docstrings_pairs("test")
    assert corruptions.docstrings_pairs.__wrapped__("test") == first
    assert corruptions.newswire_pairs.__wrapped__("test") == corruptions.newswire_pairs("test")


def test_the_rejected_texts_of_a_split_do_not_stand_in_another(docstring_rows):
    split, found = docstring_rows
    (other,) = {*HELD_OUT} - {split}
    foreign = {pair.summary for pair in docstrings.pairs(other)}
    assert not foreign & {row["rejected"] for row in found}


@pytest.mark.parametrize("corpus", ["docstrings", "newswire"])
def test_pairs_task(corpus):
    columns = getattr(corruptions, f"{corpus}_pairs")("test")
    task = seqio.get_mixture_or_task(f"{corpus}_pairs")
    found = list(task.get_dataset(None, "test", shuffle=False).as_numpy_iterator())
    assert len({int(row["example_id"]) for row in found}) == len(columns["document"])
    for i, row in enumerate(found):
        assert row["inputs"].decode() == "summarize: " + columns["document"][i]
        assert row["corruption"].decode() == columns["corruption"][i]
        for feature, column in (("targets", "chosen"), ("rejected", "rejected")):
            assert row[feature].decode() == columns[column][i]


@pytest.mark.parametrize("corpus", ["docstrings", "newswire"])
def test_entailment_task(corpus):
    pairs = rows(getattr(corruptions, f"{corpus}_pairs")("test"))
    task = seqio.get_mixture_or_task(f"{corpus}_entailment")
    found = list(task.get_dataset(None, "test", shuffle=False).as_numpy_iterator())
    assert len({int(row["example_id"]) for row in found}) == len(found) == 2 * len(pairs)
    for pair, true, false in zip(pairs, found[::2], found[1::2], strict=True):
        for row, claim, label, kind in (
            (true, pair["chosen"], "entailment", ""),
            (false, pair["rejected"], "contradiction", pair["corruption"]),
        ):
            premise = f"premise: {pair['document']} hypothesis: {claim}"
            assert row["inputs"].decode() == premise
            assert row["targets"].decode() == label
            assert row["corruption"].decode() == kind


def test_docstring_keywords_stand_in_both_texts(docstring_rows):
    split, found = docstring_rows
    task = seqio.get_mixture_or_task("docstrings").get_dataset(None, split, shuffle=False)
    told = [row["keywords"].decode() for row in task.as_numpy_iterator()]
    assert told == [row["keywords"] for row in found]
    assert sum(map(bool, told)) > 0.95 * len(told)
    for row in found:
        keywords = row["keywords"].split("\n") if row["keywords"] else []
        assert len(keywords) == len(set(keywords)) <= 3
        shared = {*words(row["document"])} & {*words(row["chosen"])}
        assert set(keywords) <= shared
        left_out = [w for w in shared - set(keywords) if docstrings.is_content(w)]
        assert not left_out or len(keywords) == 3
        assert all(len(word) <= min(map(len, keywords)) for word in left_out)


def test_docstring_keywords_by_hand():
    pair = docstring_corpus.DocstringPair(
        "to rgb(image, name): an image may be gray. it is a uint8999 rgb color, with channels.",
        "converts a gray image to uint8999 rgb color with the channels.",
        "",
    )
    assert docstrings.keywords(pair) == ["image", "color", "channels"]
    assert (
        docstrings.keywords(docstring_corpus.DocstringPair("f(): none.", "returns it.", "")) == []
    )
