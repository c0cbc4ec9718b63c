"""Paragraphs of ACLSum's training papers: what is left out, and that held-out papers are."""

import json

import pytest

from dera_jax.data import aclsum
from dera_jax.tasks import aclsum_corpus, text
from dera_jax.tasks.aclsum_corpus import BodyParagraph
from tests.texts import asked, read

PROSE = " ".join(["The model reads every sentence of the paper twice."] * 6)


def test_documents_share_no_eight_words_with_a_held_out_paper():
    runs = lambda words: (tuple(words[i : i + 8]) for i in range(len(words) - 7))
    documents = [x.text for rows in aclsum_corpus.corpus().values() for x in rows]
    known = {run for x in documents for run in runs(text.words(x))}
    assert len(known) > 100_000
    held = [paper for split in ("validation", "test") for paper in aclsum.papers(split)]
    assert len(held) == 150
    shared = set()
    for paper in held:
        parsed = json.loads((aclsum.folder() / "paper_jsons" / f"{paper.id}.json").read_text())
        body = [block["text"] for block in parsed["pdf_parse"]["body_text"]]
        for passage in [
            parsed["abstract"],
            *body,
            *paper.sections.values(),
            *paper.summaries.values(),
        ]:
            shared |= known.intersection(runs(text.words(passage)))
    assert shared == set()


def test_splits_divide_the_training_papers():
    papers = {split: {x.paper for x in rows} for split, rows in aclsum_corpus.corpus().items()}
    assert not papers["train"] & papers["validation"]
    assert papers["train"] | papers["validation"] == {x.id for x in aclsum.papers("train")}


def test_no_document_is_a_near_copy_of_another():
    """None has half of its runs of six words from those before; so none has to be left out."""
    seen = set()
    for paragraph in (x for rows in aclsum_corpus.corpus().values() for x in rows):
        runs = text.shingles(paragraph.text, 6)
        assert 2 * len(runs & seen) < len(runs)
        seen |= runs
    assert len(seen) > 100_000


@pytest.mark.parametrize(
    ("paragraph", "fault"),
    [
        (BodyParagraph("p", "Method", PROSE, False), None),
        (BodyParagraph("p", "Method", f'"{PROSE}"', False), None),
        (BodyParagraph("p", "", PROSE, False), "footnotes"),
        (BodyParagraph("p", "A Appendix", PROSE, False), "footnotes"),
        (BodyParagraph("p", "Method", PROSE, True), "a displayed formula"),
        (BodyParagraph("p", "Method", f"{PROSE} EQUATION.", False), "a displayed formula"),
        (BodyParagraph("p", "Method", f"{PROSE} Here θ is small.", False), "mathematical symbols"),
        (BodyParagraph("p", "Method", f"{PROSE} Here k = 3.", False), "mathematical symbols"),
        (BodyParagraph("p", "Method", f"{PROSE} Table 2 : Scores.", False), "captions"),
        (BodyParagraph("p", "Method", f"{PROSE} See Table 2.", False), None),
        (BodyParagraph("p", "Method", f"{PROSE} See www.aclweb.org.", False), "addresses"),
        (BodyParagraph("p", "Method", PROSE[:-1] + ":", False), "no whole sentences"),
        (BodyParagraph("p", "Method", "where " + PROSE, False), "no whole sentences"),
        (BodyParagraph("p", "Method", PROSE[:200].rsplit(".", 1)[0] + ".", False), "fewer than 40"),
        (BodyParagraph("p", "Method", " ".join([PROSE] * 4), False), "more than 200"),
        (BodyParagraph("p", "Method", f"{PROSE} The x of y and z.", False), "more than 3 %"),
        (BodyParagraph("p", "Method", f"{PROSE} 1 2 3 4 5 6 7.", False), "more than 10 %"),
    ],
)
def test_paragraphs_that_are_no_prose_have_a_fault(paragraph, fault):
    found = aclsum_corpus.fault(paragraph)
    assert found is None if fault is None else found.startswith(fault)


def test_a_body_has_no_citations_in_parentheses(tmp_path, monkeypatch):
    block = {
        "text": "Attention (Bahdanau et al., 2014; Luong, 2015a) , as in (see Kim, 1999) and "
        "Smith (2010) , helps ( a little ) .",
        "section": "Introduction",
        "eq_spans": [],
    }
    (tmp_path / "paper_jsons").mkdir()
    content = json.dumps({"pdf_parse": {"body_text": [block, block | {"eq_spans": [{}]}]}})
    (tmp_path / "paper_jsons" / "X1.json").write_text(content)
    monkeypatch.setattr(aclsum, "folder", lambda: tmp_path)
    first, second = aclsum_corpus.body("X1")
    assert first.text == "Attention, as in and Smith, helps ( a little)."
    assert (first.has_formula, second.has_formula) == (False, True)
    assert (first.paper, first.section) == ("X1", "Introduction")


def test_the_task_has_the_paragraphs_without_summaries():
    found = read("aclsum_paragraphs", "validation", 4000, 8)
    rows = aclsum_corpus.corpus()["validation"]
    assert found.documents == [x.text for x in rows]
    assert set(found.summaries) == {""} and found.notes["paper"] == [x.paper for x in rows]
    template = "Summarize the outcome of this paper in one sentence.\n\n"
    assert asked(found) == [template + x.text for x in rows]


def test_documents_of_the_alignment_are_abstracts_and_some_paragraphs():
    abstracts = {split: aclsum.examples(split, ["outcome"]) for split in ("train", "validation")}
    found = {split: read("aclsum_documents", split, 4000, 8) for split in abstracts}
    assert found["validation"].documents == [x.document for x in abstracts["validation"]]
    documents = found["train"].documents
    assert documents[:100] == [x.document for x in abstracts["train"]]
    paragraphs = {x.text: x.paper for rows in aclsum_corpus.corpus().values() for x in rows}
    assert len(documents) == len(set(documents)) == 320
    assert len({paragraphs[x] for x in documents[100:]}) > 80
    assert set(found["train"].summaries) == {""}


def test_the_numbers_are_those_of_the_corpus():
    said = aclsum_corpus.numbers().splitlines()
    rows = aclsum_corpus.corpus()["validation"]
    words = sum(len(x.text.split()) for x in rows)
    assert said[1] == f"validation: {len(rows)} documents of 10 papers, {words} words"
    assert any(line.startswith("left out, wording of a held-out paper: ") for line in said[2:])
