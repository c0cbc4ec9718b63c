"""ACLSum's papers, beside the lines of the installed package."""

import json
import sys

import numpy as np
import pytest

from dera_jax.data import aclsum
from dera_jax.metrics.rouge import ROUGE, rouge

SIZES = {"train": 100, "validation": 50, "test": 100}


def lines_of(split: str) -> list[dict]:
    """The package's own lines, by Python's splitting of files."""
    with (aclsum.folder() / f"{aclsum.SPLITS[split]}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("split", SIZES)
def test_papers_hold_what_the_package_holds_in_its_order(split):
    lines, papers = lines_of(split), aclsum.papers(split)
    assert len(papers) == SIZES[split]
    letters = lambda text: [x for x in text if not x.isspace()]
    for line, paper in zip(lines, papers, strict=True):
        assert (paper.id, paper.title) == (line["id"], line["title"].strip())
        for name, sentences in line["sentences"].items():
            assert letters(paper.sections[name]) == letters(
                "".join(sentences)
            )  # spaces alone differ
        for aspect, summary in line["summary"].items():
            assert paper.summaries[aspect].split() == summary.split()
        assert set(paper.sections) == set(line["sentences"])
        assert set(paper.summaries) == set(line["summary"])


def test_no_paper_is_in_two_splits():
    ids = [paper.id for split in SIZES for paper in aclsum.papers(split)]
    assert len(set(ids)) == len(ids) == 250


@pytest.mark.parametrize(
    ("sentences", "text"),
    [
        (["We use it .", "It works , too ."], "We use it. It works, too."),
        (["See ( Smith , 2010 ) [ 3 ] ."], "See (Smith, 2010) [3]."),
        (["Gains of 2.5 % ; why ?"], "Gains of 2.5%; why?"),
        (["The model 's score is n't high ."], "The model's score isn't high."),
        (['Words such as " human " , and " cheese " .'], 'Words such as "human", and "cheese".'),
        (["We call the ' soft ' variant so ."], "We call the 'soft' variant so."),
        (["The readers ' minds ."], "The readers' minds."),
        (["Users ' data .", "In ' A because B ' ."], "Users' data. In 'A because B'."),
        (["Within 1 - 5 F 1 points .", "F 0.5"], "Within 1 - 5 F1 points. F 0.5"),
        (["It can not copy input / output -but it might ."],
         "It can not copy input / output -but it might."),
        ([], ""),
    ],
)  # fmt: skip
def test_joined_sentences_have_no_space_that_the_tokenization_put_in(sentences, text):
    assert aclsum.join_sentences(sentences) == text


def test_an_example_for_each_paper_and_aspect():
    found = aclsum.examples("validation", ("challenge", "outcome"), ("conclusion", "abstract"))
    assert len(found) == 100
    paper, example = aclsum.papers("validation")[1], found[3]
    assert (example.paper, example.aspect) == (paper.id, "outcome")
    conclusion, abstract = paper.sections["conclusion"], paper.sections["abstract"]
    assert example.document == f"{conclusion}\n\n{abstract}"
    assert example.template == "Summarize the outcome of this paper in one sentence.\n\n{document}"
    assert example.summary == paper.summaries["outcome"]


def test_ids_of_examples_are_distinct_and_do_not_depend_on_what_else_is_read():
    by_key = {}
    for split in SIZES:
        for sections in (("abstract",), ("introduction",), ("abstract", "introduction")):
            for x in aclsum.examples(split, aclsum.ASPECTS, sections):
                by_key[x.paper, x.aspect, sections] = x.example_id
    assert len(set(by_key.values())) == len(by_key) == 250 * 3 * 3
    assert all(0 <= x < 2**31 for x in by_key.values())
    (alone,) = (x for x in aclsum.examples("test", ("approach",)) if x.paper == "N09-1041")
    assert by_key["N09-1041", "approach", ("abstract",)] == alone.example_id


@pytest.mark.parametrize(
    ("sentence", "expected"), [(0, (15.2, 1.2, 11.2)), (-1, (30.8, 11.2, 23.2))]
)
def test_rouge_of_a_sentence_of_the_abstract_beside_the_outcome(sentence, expected):
    """Expected: by rouge-score with its own tokenizer and stemmer, on the package's tokens."""
    texts = [
        aclsum.join_sentences([line["sentences"]["abstract"][sentence]])
        for line in lines_of("validation")
    ]
    outcomes = [paper.summaries["outcome"] for paper in aclsum.papers("validation")]
    found = rouge(outcomes, texts, stem=True)
    np.testing.assert_allclose([np.mean(found[x]) for x in ROUGE], expected, atol=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("val",), "the split must be 'train' or 'validation' or 'test'; found 'val'"),
        (("test", ("results",)), "the aspects must be .* outcome, approach, challenge; found"),
        (("test", "outcome"), "the aspects must be a non-empty tuple or list"),
        (("test", ()), "the aspects must be a non-empty tuple or list"),
        (("test", ("outcome",), ("title",)), "the sections must be .*; found .*'title'"),
    ],
)
def test_unknown_names_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        aclsum.examples(*arguments)


def test_without_the_package_the_error_has_the_command(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "aclsum", raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps aclsum==0.1.2"):
        aclsum.folder()
