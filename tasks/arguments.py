"""Arguments for or against a topic.

Task `arguments` reads `train.jsonl`, `validation.jsonl` and `test.jsonl` from the folder named by
`DERA_JAX_ARGUMENTS` (local or `gs://`): lines of `{"topic": "We should ban cars", "stance": "pro",
"argument": ...}`, the stance being "pro" or "con". This layout is our own, one that sets of short
arguments can be put in, such as IBM's 30,000 (Gretz et al., 2020, "A Large-scale Dataset for
Argument Quality Ranking", arXiv 1911.11408), whose table has the columns `topic`, `argument` and
`stance_WA` (1 for pro, -1 for con). TensorFlow Datasets does not have that set.

The document is the instruction, "argue for: {topic}" or "argue against: {topic}", without a further
prefix; the summary is the argument; the field `stance` is kept. A topic has many arguments: an
example's id is made from both. Keep the topics of your splits apart if you test on new ones.

The vocabulary is T5's (see `tasks.xsum`); a folder or a vocabulary of your own: `register`, under
another name.
"""

import functools
import os

import seqio

from tasks import jsonl, xsum

SPLITS = ("train", "validation", "test")
_INSTRUCTIONS = {"pro": "argue for: ", "con": "argue against: "}
_ROW = ("document", "summary")


def register(name: str, folder: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Registers a task over a folder with one JSONL file per split.

    Raises:
        ValueError: the name is taken. Reading a split raises ValueError and TypeError with file and
            line number: a text that is missing or empty, another stance.
    """
    rows = functools.partial(_rows, folder)
    return jsonl.register_pairs(name, rows, SPLITS, vocabulary, "", identity=_ROW)


def _rows(folder: str, split: str) -> dict[str, list[str]]:
    return jsonl.read_columns(os.path.join(folder, f"{split}.jsonl"), _parse, (*_ROW, "stance"))


def _parse(row: dict[str, object], where: str) -> list[dict[str, str]]:
    topic, stance, argument = (
        jsonl.text_of(row, key, where).strip() for key in ("topic", "stance", "argument")
    )
    if stance not in _INSTRUCTIONS:
        raise ValueError(f"{where}: 'stance' must be 'pro' or 'con', found {stance!r}")
    return [{"document": _INSTRUCTIONS[stance] + topic, "summary": argument, "stance": stance}]


def _default_rows(split: str) -> dict[str, list[str]]:
    files = ", ".join(f"{name}.jsonl" for name in SPLITS)
    return _rows(jsonl.folder_of("DERA_JAX_ARGUMENTS", "arguments", files), split)


jsonl.register_pairs("arguments", _default_rows, SPLITS, xsum.t5_vocabulary(), "", identity=_ROW)
