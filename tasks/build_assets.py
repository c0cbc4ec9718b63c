"""Rebuilds the assets `heldout.json` and `docstrings.model` from the installed packages.

    python -m dera_jax.tasks.build_assets        # 10 minutes on 2 cores

Run it when the pinned versions change. The shipped models must then be retrained.
"""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from dera_jax.tasks import docstring_corpus, prose_corpus, vocabularies

ASSETS = Path(str(resources.files("dera_jax"))) / "assets"
_PROSE_STEP = 3  # use every third paragraph; more take long and hardly change the pieces


def main() -> None:
    """Writes both files; the held-out list first, since the prose excludes its documents."""
    splits = docstring_corpus.corpus()
    record = json.dumps(docstring_corpus.held_out_record(splits), indent=0, sort_keys=True)
    (ASSETS / "heldout.json").write_text(record + "\n", encoding="utf-8")
    vocabularies.train(_texts(splits["train"]), str(ASSETS / "docstrings.model"))


def _texts(pairs: list[docstring_corpus.DocstringPair]) -> Iterator[str]:
    for pair in pairs:
        yield pair.document
        yield pair.summary
    paragraphs = [p for file in prose_corpus.corpus()["train"] for p in file.paragraphs]
    yield from paragraphs[::_PROSE_STEP]


if __name__ == "__main__":
    main()
