"""Turns documents given as strings into encoded ones, and records of outputs into rows.

`api` has the methods on strings that use both.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import encoding
from dera_jax.data.document_files import FILE_NAMES
from dera_jax.data.documents import Documents, documents_of
from dera_jax.data.example_ids import hashed_id
from dera_jax.data.text_columns import check_unicode, keywords_of
from dera_jax.evaluation.method_setup import check_prompt
from dera_jax.evaluation.sweep import PART
from dera_jax.prompts import DOCUMENT, Prompt
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.named import named_reward
from dera_jax.rewards.protocol import Reward

WIDTH = 64  # prompts are padded to a multiple of this number of tokens
Texts = str | Mapping[str, str] | Iterable[str | Mapping[str, str]]
RewardLike = Reward | str | Callable[[Sequence[str], Sequence[str]], Sequence[float]] | None
_KEPT = ("text", "reward", "in_range", "kl", "log_prob", "length", "finished", "forward_tokens")
_ANY_LENGTH = 2**31 - 1


class Rows(list):
    """Holds the rows that a method returns as dicts: one for each output or, of `sweep`, means for each λ.

    Every row of an output has `document`, `lam` (None for a single model), `sample`, `text`, `length` (tokens, without
    the end token), `finished` (False where max_length cut the text off) and `forward_tokens` (tokens that
    all models processed for it); with a reward `reward` and its
    parts as `reward_<name>`; `summary` and `keywords` if the document has them. Sampled rows also have
    `log_prob` and, of a pair, `kl`, both in nats and summed over the tokens.
    """

    def to_pandas(self):
        """Returns the rows as a `pandas.DataFrame`."""
        import pandas  # takes a moment

        return pandas.DataFrame(list(self))

    def to_jsonl(self, path: str | Path) -> None:
        """Writes the rows as JSON Lines."""
        Path(path).write_text(self.lines(), encoding="utf-8")

    def lines(self) -> str:
        """Returns the rows as JSON Lines."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self)


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Configures how documents become prompts and batches.

    Attributes:
        template: text of the user's message, with the slot {document}; None for the one that the models
            were trained with on files, as their cards say, or else the bare document.
        system: text of the system message, for models with a chat template; None for none.
        max_prompt: maximum tokens of a prompt, at which documents are truncated, with a warning; None
            truncates nothing.
        batch_size: documents that are decoded at once.
        seed: seed of all random draws; an output depends on it, its document and its number alone.
        folder: folder that keeps the records, so that a run that was stopped resumes; None keeps nothing.

    Raises:
        ValueError: a field has a wrong type or is out of its range.
    """

    template: str | None = None
    system: str | None = None
    max_prompt: int | None = None
    batch_size: int = 8
    seed: int = 0
    folder: str | Path | None = None

    def __post_init__(self):
        positive = checks.integer(1)
        checks.check_fields(
            self,
            max_prompt=checks.optional(positive),
            batch_size=positive,
            seed=checks.SEED,
            folder=checks.optional(checks.PATH),
        )

    def documents(self, documents: Texts, tokenizer: Tokenizer) -> Documents:
        """Encodes documents; raises TypeError or ValueError for what is no text, or empty."""
        listed = _listed(documents)
        places = getattr(documents, "places", ())
        if len(places) != len(listed):  # not those of a file as it was read
            places = [f"documents[{i}]" for i in range(len(listed))]
        rows = [_fields(item, where) for item, where in zip(listed, places, strict=True)]
        if not rows:
            raise ValueError("documents must have at least one text; found none")
        _check_alike(rows, places)
        has_keywords = any(row["keywords"] for row in rows)
        template = DOCUMENT if self.template is None else self.template
        check_prompt(template, has_keywords)
        prompts = [
            Prompt(row["document"], template, tuple(row["keywords"]), system=self.system)
            for row in rows
        ]
        texts = encoding.TextExamples(
            text_prompts=prompts,
            targets=[row["summary"] for row in rows],
            example_id=np.array([hashed_id(row["document"]) for row in rows], np.int32),
            rejected=None,
            notes={encoding.KEYWORDS: ["\n".join(row["keywords"]) for row in rows]}
            if has_keywords
            else {},
        )
        size = self.max_prompt or _width(
            tokenizer.encode_prompt(x, _ANY_LENGTH).ids for x in prompts
        )
        encoded = encoding.encode(texts, tokenizer, encoding.Sizes(size, size))
        sizes = encoding.Sizes(size, _width(encoded.targets))
        for i, bare in enumerate(encoded.bare):
            if bare:
                raise ValueError(
                    f"max_prompt = {size} leaves no token of {places[i]}, {rows[i]['document'][:60]!r}; "
                    "the prompt template alone needs that many"
                )
        examples = encoding.examples_of(texts, encoded, sizes, tokenizer.decode, "documents")
        return documents_of(examples, slice(None))


def _check_alike(rows: Sequence[Mapping], places: Sequence[str]) -> None:
    """Raises ValueError if some documents have a summary or keywords and others have none."""
    for name in ("summary", "keywords"):
        missing = [i for i, row in enumerate(rows) if row[name] in ("", ())]  # [] is given
        if 0 < len(missing) < len(rows):
            raise ValueError(
                f"{places[missing[0]]} has no {name}, and others have; give it to all documents, or to none "
                f"({rows[missing[0]]['document'][:60]!r})"
            )


def as_reward(reward: RewardLike) -> Reward | None:
    """Returns a reward, of its name (`named_reward`) or of a Python function; raises TypeError for anything else."""
    if reward is None or isinstance(reward, Reward):
        return reward
    if isinstance(reward, str):
        return named_reward(reward)
    if isinstance(reward, type) or not callable(reward):
        raise TypeError(
            "reward must be a reward of dera_jax.rewards, a name such as 'words:10-22', or a function of two "
            f"lists (documents and texts) that returns a number for each text; found {reward!r:.80}"
        )
    return HostReward(reward)


def rows_of(records: Sequence[Mapping], lam: float | None = None) -> Rows:
    """Returns the rows of records of `sweep.decode` or `methods.run`, whose outputs have λ `lam`."""
    rows = Rows()
    for record in records:
        about = {x: record[x] for x in ("document", "summary", "keywords") if record.get(x)}
        for number, sample in enumerate(record["samples"]):
            kept = {
                name: value
                for name, value in sample.items()
                if value is not None and (name in _KEPT or name.startswith(PART))
            }
            own = {"lam": sample.get("lam", lam), "sample": sample.get("sample", number)}
            rows.append(about | own | kept)
    return rows


def _listed(documents: Texts) -> list:
    if isinstance(documents, Path) or (isinstance(documents, str) and _is_file(documents)):
        raise TypeError(
            f"documents must be texts; of the file {str(documents)!r} give "
            f"dera_jax.read_documents({str(documents)!r})"
        )
    if hasattr(documents, "columns"):  # a DataFrame iterates over the names of its columns
        raise TypeError("documents are a DataFrame; give its rows: documents.to_dict('records')")
    if isinstance(documents, str | Mapping):
        return [documents]
    if not isinstance(documents, Iterable) or isinstance(documents, bytes):
        raise TypeError(
            f"documents must be a string or an iterable of strings; found {documents!r:.80}"
        )
    return list(documents)


def _is_file(text: str) -> bool:
    """Returns whether a text looks like the name of a file of documents."""
    return text.endswith(FILE_NAMES) and not any(x.isspace() for x in text)


def _fields(item: object, where: str) -> dict[str, object]:
    """Returns document, summary and keywords of the document at a place."""
    row = {"document": item} if isinstance(item, str) else item
    if not isinstance(row, Mapping) or not isinstance(row.get("document"), str):
        raise TypeError(
            f"{where} must be a string, or a dict with a string 'document'; found {item!r:.80}"
        )
    unknown = sorted(set(row) - {"document", "summary", "keywords"})
    if unknown:
        raise ValueError(
            f"{where} has {unknown[0]!r}; known fields are document, summary and keywords"
        )
    if not row["document"].strip():
        raise ValueError(f"{where} is empty")
    check_unicode(row["document"], "document", where)
    given = {
        name: list(x) if isinstance(x, tuple) else x for name, x in row.items() if x is not None
    }
    if not isinstance(given.get("summary", ""), str):
        raise TypeError(f"{where}: 'summary' must be a string or None, found {given['summary']!r}")
    keywords_of(given, where)
    summary = given.get("summary", "")
    return {"keywords": ()} | given | {"summary": summary if summary.strip() else ""}


def _width(sequences: Iterable[Sequence[int]]) -> int:
    """Returns the tokens of the longest sequence, rounded up to a multiple of WIDTH."""
    return -(-max(map(len, sequences)) // WIDTH) * WIDTH
