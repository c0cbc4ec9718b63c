"""Lists of arguments for and against, and prose that says them and nothing else.

Task `arguments` reads `train.jsonl`, `validation.jsonl` and `test.jsonl` from the folder named by
`DERA_JAX_ARGUMENTS` (local or `gs://`): lines of `{"topic": "Ban cars", "pro": ["Quiet streets."],
"con": ["Villages have no trains."], "text": "Quiet streets speak for it, but ..."}`. What DeRa's
hallucination experiment uses (Liu et al., 2024, arXiv 2402.02992) is not published; this layout is
our own. Lists of arguments can be made of sets such as IBM's 30,000 (Gretz et al., 2020, arXiv
1911.11408); TensorFlow Datasets has none. In the split `test` all lines may lack `text`.

The document is the list, "topic: Ban cars pro: Quiet streets. con: Villages have no trains.", after
"rewrite: "; the summary is the prose. A folder of your own: `register`, under another name; one file
for all splits: `register_one_file`.
"""

import functools
import os
from collections.abc import Mapping

import seqio

from tasks import jsonl, preferences

SPLITS = ("train", "validation", "test")
TEMPLATE = "rewrite: {document}"


def register(name: str, folder: str) -> seqio.Task:
    """Registers a task over a folder with one JSONL file per split.

    Raises:
        ValueError: the name is taken. Reading a split raises ValueError and TypeError with file and
            line number: a text that is missing or empty, a list that is none, no argument at all.
    """
    rows = functools.partial(_rows, folder)
    return jsonl.register_pairs(name, rows, SPLITS, TEMPLATE)


def register_one_file(name: str, path: str, shares: Mapping[str, float]) -> seqio.Task:
    """Registers a task over one file, of whose documents each split gets a share.

    shares: by split, such as `{"train": 0.6, "validation": 0.2, "test": 0.2}`

    Raises:
        ValueError: shares that do not add up to 1, or the name is taken; and as `register`.
    """
    preferences.check_shares(shares)

    def rows(split: str) -> dict[str, list[str]]:
        return preferences.split_rows(_read(path, need_text=True), shares)[split]

    return jsonl.register_pairs(name, rows, list(shares), TEMPLATE)


def _rows(folder: str, split: str) -> dict[str, list[str]]:
    return _read(os.path.join(folder, f"{split}.jsonl"), need_text=split in jsonl.NEED_SUMMARIES)


def _read(path: str, need_text: bool) -> dict[str, list[str]]:
    parse = functools.partial(_parse, need_text=need_text)
    return jsonl.with_summaries(jsonl.read_columns(path, parse))


def _parse(row: dict[str, object], where: str, need_text: bool) -> list[dict[str, str]]:
    topic = jsonl.text_of(row, "topic", where).strip()
    sides = [(side, argument) for side in ("pro", "con") for argument in _list(row, side, where)]
    if not sides:
        raise ValueError(f"{where}: neither 'pro' nor 'con' has an argument")
    document = " ".join([f"topic: {topic}", *(f"{side}: {text}" for side, text in sides)])
    if not need_text and "text" not in row:
        return [{"document": document}]
    return [{"document": document, "summary": jsonl.text_of(row, "text", where).strip()}]


def _list(row: dict[str, object], side: str, where: str) -> list[str]:
    found = row.get(side, [])
    if not isinstance(found, list):
        raise TypeError(f"{where}: {side!r} must be a list of texts, found {found!r}")
    return [jsonl.text_of({side: text}, side, where).strip() for text in found]


def _default_rows(split: str) -> dict[str, list[str]]:
    files = ", ".join(f"{name}.jsonl" for name in SPLITS)
    return _rows(jsonl.folder_of("DERA_JAX_ARGUMENTS", "arguments", files), split)


jsonl.register_pairs("arguments", _default_rows, SPLITS, TEMPLATE)
