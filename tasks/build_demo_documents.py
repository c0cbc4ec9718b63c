"""Rebuilds the documents of the demos, in `dera_jax/assets/aclsum` and `dera_jax/assets/docstrings`.

    python -m dera_jax.tasks.build_demo_documents

The abstracts are those of the first sixteen papers of ACLSum's split validation that were published in
2016 or later: the ACL Anthology has their texts under CC BY 4.0, and earlier ones under a licence that
excludes commercial use. The docstrings are the sixteen of the task's split test with the lowest
example ids, as `Split(..., documents=16)` selects them.
"""

import json
import re
from collections.abc import Iterable, Iterator

from dera_jax.data import aclsum, demo_documents
from dera_jax.tasks import docstring_corpus, docstrings
from dera_jax.tasks.build_assets import ASSETS

_NUMBER = 16
_FIRST_YEAR = 2016
_NAMES = {  # that were misread from the PDF
    "Andrew Mccallum": "Andrew McCallum",
    "Daniel Preot ¸iuc-Pietro": "Daniel Preoţiuc-Pietro",
    "Ye Kyaw": "Ye Kyaw Thu",
    "⇤ Shikhar Murty": "Shikhar Murty",
}


def main() -> None:
    """Writes both files."""
    _write(demo_documents.ABSTRACTS, abstract_rows())
    _write(demo_documents.DOCSTRINGS, docstring_rows())


def abstract_rows() -> list[dict]:
    """Return the lines about the papers, with their authors for the attribution."""
    free = [x for x in aclsum.papers("validation") if year(x.id) >= _FIRST_YEAR]
    return [
        {
            "id": paper.id,
            "title": paper.title,
            "authors": list(_authors(paper.id)),
            "abstract": paper.sections["abstract"],
            "summaries": dict(paper.summaries),
        }
        for paper in free[:_NUMBER]
    ]


def year(paper: str) -> int:
    """Return the year of an id of the ACL Anthology, such as "2021.acl-long.67" or "D14-1082"."""
    new, old = re.match(r"(\d{4})\.|[A-Z](\d\d)-", paper).groups()
    return int(new) if new else int(old) + (1900 if int(old) > 50 else 2000)


def _authors(paper: str) -> Iterator[str]:
    content = (aclsum.folder() / "paper_jsons" / f"{paper}.json").read_text("utf-8")
    for author in json.loads(content)["authors"]:
        name = " ".join(x for x in (author["first"], *author["middle"], author["last"]) if x)
        yield _NAMES.get(name, name)


def docstring_rows() -> list[dict]:
    """Return the lines about the docstrings."""
    pairs = sorted(docstring_corpus.held_out("test"), key=docstrings.example_id)
    return [
        {
            "document": pair.document,
            "summary": pair.summary,
            "keywords": docstrings.keywords(pair),
            "source": pair.source,
        }
        for pair in pairs[:_NUMBER]
    ]


def _write(name: str, rows: Iterable[dict]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (ASSETS / name).parent.mkdir(exist_ok=True)
    (ASSETS / name).write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
