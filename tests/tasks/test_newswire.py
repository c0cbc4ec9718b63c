"""Newswire against facts that are read back from the texts without the generator's templates."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import task_data
from dera_jax.data.encoding import Sizes
from dera_jax.tasks import newswire, newswire_corpus
from dera_jax.tasks.newswire_corpus import check, facts_in
from tests.texts import asked

SIZES = Sizes(64, 32)
TEXT = Tokenizer(newswire.vocabulary())
SPLITS = ("train", "validation", "test")

# Read by hand from the phrases of a match, independently of `newswire_words`.
_MATCH = (
    r"The (?P<winner>\w+) beat the (?P<loser>\w+) by (?P<goals>\d) goals to (?P<conceded>\d) in ",
    r"On \w+ the (?P<loser>\w+) lost by (?P<conceded>\d) goals to (?P<goals>\d) in (?P<city>\w+) "
    + r"to the (?P<winner>\w+)\.",
)

FACTS = {
    "kind": "match",
    "winner": "Otters",
    "loser": "Ravens",
    "goals": "6",
    "conceded": "1",
    "city": "Newbury",
    "day": "Sunday",
    "scorer": "Turner",
    "minute": "58",
}


@pytest.fixture(scope="module")
def reports():
    return newswire_corpus.reports("train", 1000, seed=3)


def word_set(text):
    return set(re.findall(r"\w+", text))


def test_a_seed_makes_the_same_reports():
    assert newswire_corpus.reports("test", 50, 3) == newswire_corpus.reports("test", 50, 3)
    assert newswire_corpus.reports("test", 50, 3) != newswire_corpus.reports("test", 50, 4)


def test_splits_have_no_facts_in_common():
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        first = {json.dumps(report.facts) for report in newswire.reports(one)}
        second = {json.dumps(report.facts) for report in newswire.reports(two)}
        assert (len(first), len(second)) == (newswire.SIZES[one], newswire.SIZES[two])
        assert not first & second


def test_splits_stay_apart_across_seeds():
    facts = [
        {json.dumps(report.facts, sort_keys=True) for report in newswire_corpus.reports(s, 400, i)}
        for i, s in enumerate(SPLITS)
    ]
    assert not facts[0] & facts[1] | facts[0] & facts[2] | facts[1] & facts[2]


def test_documents_have_two_to_four_sentences_and_summaries_one(reports):
    sentences = Counter(report.document.count(". ") + 1 for report in reports)
    assert set(sentences) == {2, 3, 4}
    assert all(report.summary.count(".") == 1 for report in reports)
    assert Counter(report.facts["kind"] for report in reports).keys() == {
        "match",
        "weather",
        "market",
        "election",
    }


def test_every_fact_and_keyword_stands_in_the_document(reports):
    for report in reports:
        values = [value for role, value in report.facts.items() if role != "kind"]
        assert set(values) <= word_set(report.document)
        numbers = re.findall(r"\d+", report.document)
        assert Counter(numbers) == Counter(value for value in values if value.isdigit())
        assert report.keywords == tuple(value for value in values if not value.isdigit())


def test_match_facts_read_by_hand(reports):
    matches = [report for report in reports if report.facts["kind"] == "match"]
    assert len(matches) > 150
    for report in matches:
        found = [match for match in (re.match(p, report.document) for p in _MATCH) if match]
        assert len(found) == 1
        for role, value in found[0].groupdict().items():
            assert report.facts[role] == value
        assert int(report.facts["goals"]) > int(report.facts["conceded"])


def test_names_and_numbers_of_a_summary_stand_in_its_document(reports):
    for report in reports:
        named = {word for word in word_set(report.summary[1:]) if not word.islower()}
        assert named <= word_set(report.document)


def test_the_checker_accepts_the_corpus(reports):
    assert all(check(report.summary, report.facts).faithful for report in reports)


def test_the_checker_rejects_summaries_of_other_documents(reports):
    accepted = [
        (report, other)
        for report, other in zip(reports, reports[1:] + reports[:1], strict=True)
        if check(other.summary, report.facts).faithful
    ]
    assert len(accepted) < 5  # the same weather in the same town, say, tersely put
    for report, other in accepted:
        assert word_set(other.summary) & set(other.facts.values()) <= word_set(report.document)


@pytest.mark.parametrize(
    "summary, roles",
    [
        ("Otters beat Ravens.", {"winner", "loser"}),
        ("Ravens lost to Otters by 6 goals to 1.", {"winner", "loser", "goals", "conceded"}),
        (
            "Otters beat Ravens after Turner scored in minute 58.",
            {*["winner", "loser", "scorer", "minute"]},
        ),
    ],
)
def test_faithful_summaries(summary, roles):
    assert check(summary, FACTS).faithful
    assert facts_in(summary, FACTS) == roles


@pytest.mark.parametrize(
    "summary, wrong, loose",
    [
        ("Ravens beat Otters.", {"winner", "loser"}, ()),  # names right, roles swapped
        ("Otters beat Ravens by 1 goals to 6.", {"goals", "conceded"}, ()),
        ("Otters beat Ravens by 6 goals to 12.", {"conceded"}, ()),  # a number never used
        ("Otters beat Ravens before 58 thousand fans.", {"crowd"}, ()),  # not in this document
        ("Otters beat Ravens on Sunday 6.", set(), ("6",)),
        ("Otters beat Ravens in Turner.", set(), ("Turner",)),
        ("Newbury elected Turner.", set(), ("Newbury", "Turner")),  # another kind's phrase
        ("The the the.", set(), ()),
        ("", set(), ()),
    ],
)
def test_unfaithful_summaries(summary, wrong, loose):
    found = check(summary, FACTS)
    assert not found.faithful
    assert {role for role, _ in found.wrong} == wrong
    assert found.loose == loose


def test_summary_lengths_are_spread_and_barely_depend_on_the_document(reports):
    lengths = np.array([len(report.summary.split()) for report in reports])
    assert lengths.min() <= 4 and lengths.max() >= 25
    assert lengths.std() > 5
    long_documents = [r for r in reports if r.document.count(".") == 4]
    spread = [len(report.summary.split()) for report in long_documents]
    assert np.percentile(spread, 10) <= 6 and np.percentile(spread, 90) >= 20


def test_task_gives_whole_words_that_fit():
    vocabulary = newswire.vocabulary()
    assert 500 <= len(vocabulary.pieces) <= 800
    for split in SPLITS:
        examples = task_data.epoch("newswire", split, TEXT, SIZES, seed=0)
        assert len(examples) == newswire.SIZES[split]
        for report, document, summary in zip(
            newswire.reports(split), examples.documents, examples.summaries, strict=True
        ):
            assert (document, summary) == (report.document, report.summary)
        words = [len(re.findall(r"\w+|[.,:]", text)) + 1 for text in asked(examples)]
        np.testing.assert_array_equal(examples.inputs.lengths, words)
        words = [len(re.findall(r"\w+|[.,]", text)) + 1 for text in examples.summaries]
        np.testing.assert_array_equal(examples.targets.lengths, words)
        assert vocabulary.decode(examples.targets.tokens[0].tolist()) == examples.summaries[0]


def test_task_carries_the_facts():
    examples = task_data.epoch("newswire", "test", TEXT, SIZES, seed=0)
    for report, facts, keywords in zip(
        newswire.reports("test"), examples.notes["facts"], examples.notes["keywords"], strict=True
    ):
        assert json.loads(facts) == report.facts
        assert tuple(keywords.split("\n")) == report.keywords
    assert len(set(examples.example_id.tolist())) == len(examples)
    assert examples.example_id.min() >= 0


def test_vocabulary_writes_what_is_not_in_the_corpus_in_bytes():
    vocabulary = newswire.vocabulary()
    ids = vocabulary.encode("Zürich won 100 times")
    assert vocabulary.unknown_id not in ids
    assert vocabulary.decode(ids) == "Zürich won 100 times"


def test_training_the_vocabulary_again_gives_the_same_file():
    assert newswire._train() == newswire._train()


def test_unknown_split():
    with pytest.raises(ValueError, match="no split 'dev'"):
        newswire_corpus.reports("dev", 1, 0)


def test_truth_is_a_reward_of_texts():
    report = newswire.reports("test")[0]
    document = report.document
    other = next(
        r.summary
        for r in newswire.reports("test")[1:]
        if not check(r.summary, report.facts).faithful
    )
    assert newswire.truth([document] * 3, [report.summary, other, ""]) == [1.0, 0.0, 0.0]
