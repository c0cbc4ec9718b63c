"""The documents of the demos, beside the packages and tasks from which they were taken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dera_jax.tasks  # noqa: F401 (registers `aclsum_outcome` and `docstrings`)
from dera_jax.data import aclsum, demo_documents
from dera_jax.data.splits import Split
from dera_jax.tasks import build_demo_documents, docstring_corpus
from tests.texts import ASSETS, BYTES, SHIPPED

ROOT = Path(__file__).resolve().parents[2]
READ = """
import sys
for name in ("tensorflow", "seqio", "tensorflow_datasets", "aclsum", "gin"):
    sys.modules[name] = None  # an import of it raises
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import demo_documents
text = Tokenizer(ByteVocabulary())
print(len(demo_documents.abstracts(text, 999).texts), len(demo_documents.docstrings(text, 99).texts))
"""


def rows(name: str) -> list[dict]:
    return [json.loads(x) for x in (ASSETS / name).read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_the_files_are_those_that_the_installed_packages_give():
    assert rows(demo_documents.ABSTRACTS) == build_demo_documents.abstract_rows()
    assert rows(demo_documents.DOCSTRINGS) == build_demo_documents.docstring_rows()


def test_the_abstracts_are_of_sixteen_validation_papers_since_2016():
    validation = {x.id: x for x in aclsum.papers("validation")}
    papers = demo_documents.papers()
    assert len(papers) == len({x.id for x in papers}) == 16
    for paper in papers:
        known = validation[paper.id]
        assert (paper.title, paper.summaries) == (known.title, known.summaries)
        assert paper.sections["abstract"] == known.sections["abstract"]
        assert paper.id.startswith("20") or int(paper.id[1:3]) in (16, 17, 18, 19)


def test_the_docstrings_are_listed_as_held_out():
    pairs = [
        docstring_corpus.DocstringPair(x["document"], x["summary"], x["source"])
        for x in rows(demo_documents.DOCSTRINGS)
    ]
    assert len({x.hash for x in pairs}) == 16
    assert docstring_corpus.listed_splits(pairs) == ["test"] * 16


@pytest.mark.parametrize("aspect", aclsum.ASPECTS)
def test_abstracts_are_read_as_the_task_reads_them(aspect):
    found = demo_documents.abstracts(BYTES, 500, aspect)
    task = Split(f"aclsum_{aspect}", "validation", 500).read(BYTES)
    row_of = {x: i for i, x in enumerate(task.example_id.tolist())}
    chosen = [row_of[x] for x in found.example_id.tolist()]
    assert found.text_prompts == [task.text_prompts[i] for i in chosen]
    assert found.summaries == [task.summaries[i] for i in chosen]
    assert (found.prompts.tokens == task.prompts.tokens[chosen]).all()
    assert (found.prompts.lengths == task.prompts.lengths[chosen]).all()
    assert found.document.lengths.tolist() == task.document.lengths[chosen].tolist()


def test_docstrings_are_the_task_s_first_sixteen_documents():
    task = Split("docstrings", "test", 80, documents=16).read(SHIPPED)
    found = demo_documents.docstrings(SHIPPED, 80)
    assert found.texts == task.texts and found.summaries == task.summaries
    assert found.text_prompts == task.text_prompts
    assert found.example_id.tolist() == task.example_id.tolist()
    for name in ("tokens", "lengths"):
        assert (getattr(found.prompts, name) == getattr(task.prompts, name)).all()
    assert (found.document.lengths == task.document.lengths).all()


def test_an_unknown_aspect_raises():
    with pytest.raises(ValueError, match="the aspects must be .* found .*'results'"):
        demo_documents.abstracts(BYTES, 500, "results")


def test_they_are_read_without_tensorflow_and_the_packages():
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "16 16\n"


def test_every_paper_and_package_is_attributed():
    said = (ASSETS / "aclsum" / "ATTRIBUTION.md").read_text("utf-8")
    for row in rows(demo_documents.ABSTRACTS):
        assert f"- {', '.join(row['authors'])}: {row['title']}." in said
        assert f"https://aclanthology.org/{row['id']}\n" in said
    assert "MIT licence" in said and "creativecommons.org/licenses/by/4.0" in said
    said = (ASSETS / "docstrings" / "ATTRIBUTION.md").read_text("utf-8")
    for row in rows(demo_documents.DOCSTRINGS):
        assert f"- `{row['source'].partition('/')[0]}/`:" in said
