"""Reads a user's own files, one per split, in place of a seqio task and without TensorFlow.

The files are JSON Lines, CSV or Parquet (`tables`), with the columns `document` and, for supervised
training, `summary`, or `document`, `chosen` and `rejected` for preference pairs. They give the same examples, with the same
ids, as a task that `dera_jax.tasks.jsonl.register` or `dera_jax.tasks.preferences.register` makes of them.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.data import encoding, tables, text_columns, text_rows
from dera_jax.data.data_files import check_is_file
from dera_jax.data.encoding import Sizes
from dera_jax.data.examples import Examples
from dera_jax.data.text_columns import PAIR
from dera_jax.prompts import DOCUMENT, SUMMARIZE, check_template

SPLITS = ("train", "validation", "test")
COLUMNS = ("document", "summary", "chosen", "rejected", "keywords", "weight")
_PATH = dataclasses.replace(checks.TEXT, words="the path of a file, such as 'train.jsonl'")


class NoFileError(ValueError):
    """A run reads a split of which it has no file."""


@dataclasses.dataclass(frozen=True)
class OwnFiles:
    """Holds the data files of a run.

    Attributes:
        train, validation, test: path or URL of the file of each split; None for a split that the
            run does not read.
        template: the prompt template, with one slot {document}.
        columns: the files' names of columns by the names in `COLUMNS`, such as `{"document":
            "article"}`; other columns keep their names.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a path is a folder, the template has no slot, or a column is unknown.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    template: str = SUMMARIZE
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        checks.check_fields(self, **dict.fromkeys(SPLITS, checks.optional(_PATH)))
        check_template(self.template, "TEMPLATE")
        checks.check_fields(self, columns=_NAMES)
        for path in self._paths().values():
            check_is_file(path)

    def _paths(self) -> dict[str, str]:
        paths = {split: getattr(self, split) for split in SPLITS}
        return {split: path for split, path in paths.items() if path is not None}

    @property
    def name(self) -> str:
        """Return the paths for error messages."""
        return f"the files {', '.join(self._paths().values())}"

    @property
    def label(self) -> str:
        """Return the paths, where the name of a task may stand."""
        return ", ".join(self._paths().values())

    def described(self) -> dict[str, object]:
        """Return paths, template and names of columns, for the model card."""
        return {**self._paths(), "template": self.template, "columns": dict(self.columns)}

    def check(self, *splits: str, pairs: bool = False, summaries: bool = False) -> None:
        """Check that there is a file of each split, and the columns of its first row.

        Args:
            *splits: some of `SPLITS`.
            pairs: whether the files must hold preference pairs.
            summaries: whether they must hold summaries, or pairs, whose chosen responses are read as
                summaries.

        Raises:
            NoFileError: there is no file of a split.
            ValueError: a file lacks a column; or as `tables.first_row`. The message names the line.
        """
        for split in splits:
            where, row = tables.first_row(self._path(split), self.columns)
            if pairs:
                _check_columns(where, row, PAIR, "preference pairs need")
            elif summaries and not _is_pair(row):
                _check_columns(
                    where, row, (*text_columns.DOCUMENT, "summary"), "supervised training needs"
                )
            else:
                _check_columns(where, row, text_columns.DOCUMENT, "every run needs")

    def title(self, split: str) -> str:
        """Return the path of a split, or the split's name if it has none, for messages."""
        return self._paths().get(split, split)

    def known_vocabulary(self, named: Vocabulary | None) -> Vocabulary | None:
        """Return `named`: the files are text, and each model encodes them."""
        return named

    def epoch(self, split: str, tokenizer: Tokenizer, sizes: Sizes, seed: int = 0) -> Examples:
        """Read one pass over a split.

        Args:
            split: one of `SPLITS`.
            tokenizer: of the model that reads the examples.
            sizes: maximum lengths. Truncated targets still end with the end token.
            seed: not used.

        Raises:
            FileNotFoundError: the file does not exist.
            ModuleNotFoundError: as `tables.rows`.
            TypeError, ValueError: a row is invalid, see `text_columns`; there is no file of the
                split; or it has no usable example.
        """
        texts, ids = text_rows.encoded(text_rows.TextRows(self._rows(split)), tokenizer, sizes)
        return encoding.examples_of(texts, ids, sizes, tokenizer.decode, self.title(split))

    def _path(self, split: str) -> str:
        if split in self._paths():
            return self._paths()[split]
        if split not in SPLITS:
            raise NoFileError(f"own files have the splits {', '.join(SPLITS)}; found {split!r}")
        raise NoFileError(
            f"the split {split!r} is read, but no file is given for it: add --gin.{split.upper()}=..."
        )

    def _rows(self, split: str) -> list[text_rows.Row]:
        path = self._path(split)
        if _is_pair(tables.first_row(path, self.columns)[1]):
            columns = text_columns.read_pairs(path, self.columns)
            columns = text_columns.with_ids(columns, PAIR)
            columns["targets"] = columns.pop("chosen")
        else:
            columns = text_columns.read_summaries(path, False, self.columns)
            columns = text_columns.with_ids(columns, text_columns.DOCUMENT)
            columns["targets"] = columns.pop("summary")
        rows = zip(*columns.values(), strict=True)
        return [self._row(dict(zip(columns, row, strict=True))) for row in rows]

    def _row(self, row: dict[str, str]) -> text_rows.Row:
        return row | {
            "inputs": self.template.replace(DOCUMENT, row["document"]),
            "template": self.template,
            "example_id": np.int32(row["example_id"]),
        }


def _is_pair(row: tables.Row) -> bool:
    return {"chosen", "rejected"} <= row.keys()


def _check_columns(where: str, row: tables.Row, names: Sequence[str], who: str) -> None:
    """Raise ValueError unless a row has these columns, which `who` ("a run needs") reads."""
    for name in names:
        if name not in row:
            raise ValueError(
                f"{where}: no {name!r}; {who} the columns {', '.join(names)}; found "
                f"{', '.join(row)}. COLUMNS may name others, such as {{{name!r}: 'text'}}"
            )


_NAMES = checks.Check(
    f"names of columns by some of {', '.join(COLUMNS)}, such as {{'document': 'article'}}",
    lambda value: (
        isinstance(value, dict)
        and value.keys() <= set(COLUMNS)
        and all(map(checks.TEXT.allows, value.values()))
    ),
)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


_say_once = functools.cache(_say)  # gin calls `own_files` for each object that has files


def trained_template(cards: Sequence[Mapping], say: Callable[[str], None] = _say) -> str | None:
    """Return the prompt template of the files that models were trained on, and print that it is used.

    Args:
        cards: cards of the reference and of the aligned models. Of several templates, the last is used.
        say: prints a line.

    Returns:
        None if no card names a template.
    """
    named = [card.get("data", {}).get("files", {}).get("template") for card in cards]
    named = [x for x in named if x]
    if not named:
        return None
    others = [repr(x) for x in dict.fromkeys(named) if x != named[-1]]
    also = f" (another model was trained with {', '.join(others)})" if others else ""
    say(f"prompts are written as in training: {named[-1]!r}{also}")
    return named[-1]


def own_files(
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    template: str | None = None,
    columns: Mapping[str, str] | None = None,
    models: Sequence[str | Sequence[str] | None] = (),
) -> OwnFiles | None:
    """Return the files of a run; None if it names none and reads a task.

    Args:
        train, validation, test: path or URL of the file of each split; None for a split that the
            run does not read.
        template: the prompt template, with one slot {document}; None for that of the models'
            training, or else "summarize: {document}".
        columns: the files' names of columns by the names in `COLUMNS`, such as `{"document":
            "article"}`; None for the names in `COLUMNS`.
        models: the models that read the files; None for one that the run does not have.

    Raises:
        FileNotFoundError, ValueError: as `OwnFiles`, and as `open_checkpoint`.
        ValueError: a template or names of columns are given, but no file.
    """
    if train is None and validation is None and test is None:
        if template is not None or columns is not None:
            raise ValueError(
                "TEMPLATE and COLUMNS are those of your own files; set TRAIN, VALIDATION or TEST too"
            )
        return None
    if template is None:
        cards = [open_checkpoint(x).card for x in jax.tree.leaves(list(models))]
        template = trained_template(cards, _say_once) or SUMMARIZE
    return OwnFiles(train, validation, test, template, {} if columns is None else columns)
