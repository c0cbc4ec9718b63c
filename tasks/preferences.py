"""Tasks of preference pairs: of two texts about a document, `chosen` is better than `rejected`.

    from tasks import preferences
    preferences.register(
        "my_pairs",
        {"train": "pairs/train.jsonl", "validation": "pairs/dev.jsonl", "test": "pairs/test.jsonl"},
    )

reads lines of `{"document": ..., "chosen": ..., "rejected": ...}`; `register_one_file` divides one
file by shares that you set. The features are `inputs` (the document in the template), `targets`
(the chosen text, so that a task of pairs can also be used for fine-tuning) and `rejected`.

Every task of pairs that has a split `train` has its two halves too, `train_a` and `train_b`, divided
by document: a reward model and the judge of what it leads to should not learn from the same ones.

`"keywords"` may be a list of texts, as in `tasks.jsonl`. Further keys whose values are texts become
fields of the task; then every line must have them.
Other values are ignored. A bad line stops the run, with its file and number. A document that stands
in two files is not looked for.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping

import seqio

from tasks import jsonl, text

TEXTS = ("document", "chosen", "rejected")
FEATURES = ("inputs", "targets", "rejected")
_OUTPUTS = {"targets": "chosen", "rejected": "rejected"}
_HALVES = {"train_a": 0.5, "train_b": 0.5}
_OWN_FIELDS = ("inputs", "targets", "example_id", "template", "keep_end")

Columns = Mapping[str, list[str]]


def register(name: str, paths: Mapping[str, str], template: str = jsonl.SUMMARIZE) -> seqio.Task:
    """Registers a task that reads one JSONL file of pairs per split. Arguments as `jsonl.register`.

    Raises:
        ValueError: no split, or the name is taken. Reading a split raises as `read`.
    """
    jsonl.check_paths(name, paths)
    files = dict(paths)
    return register_pairs(name, lambda split: read(files[split]), files, template)


def register_one_file(
    name: str,
    path: str,
    shares: Mapping[str, float],
    template: str = jsonl.SUMMARIZE,
) -> seqio.Task:
    """Registers a task over one file of pairs, of which each split gets a share.

    Args:
        name, template: see `register`.
        path: of the file, local or `gs://`; read when a split is, not before.
        shares: of the documents, by split, such as `{"train": 0.9, "validation": 0.1}`.

    Raises:
        ValueError: as `split_rows`, or the name is taken. Reading a split raises as `read`.
    """
    check_shares(shares)
    rows = functools.partial(_share, path, dict(shares))
    return register_pairs(name, rows, list(shares), template)


def register_pairs(
    name: str,
    rows: Callable[[str], Columns],
    splits: Iterable[str],
    template: str,
    key: Callable[[str], str] = str,
    keep_end: bool = False,
) -> seqio.Task:
    """Registers a task over columns of text held in memory.

    Args:
        rows: for a split, equally long columns `document`, `chosen` and `rejected`; further ones
            are kept.
        name, template: see `register`.
        key: what of a document decides in which half of `train` it falls, by default all of it.
        keep_end: of documents that are too long cut the beginning, not the end.
    """
    # A document may have several pairs: only all three texts together tell them apart.
    steps = jsonl.preprocessors(template, _OUTPUTS, identity=TEXTS, keep_end=keep_end)
    splits = list(splits)
    halves = list(_HALVES) if "train" in splits else []

    def columns(split: str) -> Columns:
        return split_rows(rows("train"), _HALVES, half)[split] if split in halves else rows(split)

    def half(document: str) -> str:  # another hash than the one that may have made `train`
        return f"half of {key(document)}"

    return jsonl.register_columns(name, columns, splits + halves, steps, FEATURES)


def read(path: str) -> dict[str, list[str]]:
    """Reads and checks a file of `{"document", "chosen", "rejected"}` lines.

    Returns:
        These columns, one for every further key whose values are texts, and `weight` if there is one.

    Raises:
        FileNotFoundError: no such file.
        TypeError: with file and line number: not an object, a value that is not a text.
        ValueError: with file and line number: not JSON, a key missing, an empty text, a chosen text
            that is also the rejected one, a further text in some lines only.
    """
    return jsonl.read_columns(path, _parse)


def pair(document: str, chosen: str, rejected: str, where: str) -> dict[str, str]:
    """A row; raises ValueError, with where it stands, if its two texts are the same words."""
    if chosen.split() == rejected.split():
        raise ValueError(f"{where}: 'chosen' and 'rejected' are the same text")
    return {"document": document, "chosen": chosen, "rejected": rejected}


def split_rows(
    rows: Columns, shares: Mapping[str, float], key: Callable[[str], str] = str
) -> dict[str, dict[str, list[str]]]:
    """Divides rows among splits; all rows of one document fall in the same one.

    A hash decides, so that a document stays where it is when others are added or taken out.

    Args:
        rows: columns, of which `document` decides.
        shares: of the documents, by split; their order matters.
        key: what of a document decides, by default all of it.

    Raises:
        ValueError: a share that is not positive, or shares that do not add up to 1.
    """
    check_shares(shares)
    where = [_split_of(key(document), shares) for document in rows["document"]]
    return {
        split: {
            name: [value for value, found in zip(column, where, strict=True) if found == split]
            for name, column in rows.items()
        }
        for split in shares
    }


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError if a share is not positive, or they do not add up to 1."""
    for split, share in shares.items():
        if not share > 0:
            raise ValueError(f"shares[{split!r}]: expected a positive number, found {share}")
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ValueError(
            f"shares: expected numbers that add up to 1, found {dict(shares)}, "
            f"which add up to {sum(shares.values())}"
        )


def _share(path: str, shares: Mapping[str, float], split: str) -> dict[str, list[str]]:
    return split_rows(read(path), shares)[split]


def _split_of(content: str, shares: Mapping[str, float]) -> str:
    place = int(text.text_hash(content), 16) / 2**64
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return list(shares)[-1]  # the shares add up to a little less than 1


def _parse(row: dict[str, object], where: str) -> list[dict[str, str]]:
    found = pair(*(jsonl.text_of(row, key, where) for key in TEXTS), where)
    more = jsonl.keywords_of(row, where) | jsonl.weight_of(row, where)
    return [found | more | _further(row, where)]


def _further(row: dict[str, object], where: str) -> dict[str, str]:
    texts = {key: value for key, value in row.items() if isinstance(value, str)}
    further = {key: value for key, value in texts.items() if key not in TEXTS}
    for key, value in further.items():
        if key in _OWN_FIELDS or key.endswith("_pretokenized"):
            raise ValueError(f"{where}: key {key!r} is a name of the task's own; rename it")
        jsonl.check_unicode(value, key, where)
    return further
