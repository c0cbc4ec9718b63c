"""Tokenizes and truncates examples, drops unusable ones, and reports both in warnings.

The examples are text, or token ids that a task made itself. An example is dropped if it has

- empty inputs, that is a document without a token;
- inputs of which truncation leaves the prompt template only;
- empty targets, unless all targets of the split are empty, as in files without summaries;
- in preference tasks, an empty rejected response, or chosen and rejected responses with equal ids.

A keyword that occurs in the document but not in the truncated document is dropped too, since a
model that reads the truncated document could not know it.

Axes: n examples, S input length, T target length.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import EncodedPrompt, Tokenizer
from dera_jax.data.example_ids import make_ids_unique
from dera_jax.data.examples import Examples, Ragged
from dera_jax.log import warn_once
from dera_jax.models.language_model import Padded, Prompts, pad_sequences
from dera_jax.prompts import Prompt
from dera_jax.rewards.word_hashes import keyword_bytes
from dera_jax.rewards.words import coverage

KEYWORDS = "keywords"  # name of the note that holds one keyword per line
_MAX_SHOWN_IDS = 10  # in a warning

Decode = Callable[[Sequence[int]], str]
_dropped_counts: dict[str, dict[str, int]] = {}  # by name of an epoch, then by reason


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Maximum lengths of examples in tokens, including control tokens.

    Attributes:
        inputs: S, of prompts.
        targets: T, of targets and rejected responses.

    Raises:
        ValueError: a length is not a positive integer.
    """

    inputs: int
    targets: int

    def __post_init__(self):
        checks.check_fields(self, inputs=checks.integer(1), targets=checks.integer(1))


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """Holds n examples as text.

    Attributes:
        text_prompts: n prompts.
        targets: n target texts; in preference tasks the chosen responses.
        example_id: int32 [n].
        rejected: n rejected responses of a preference task; None for other tasks.
        notes: further string fields by name, n strings each.
        weight: float32 [n], weights of the examples in training losses; None: all 1.
    """

    text_prompts: list[Prompt]
    targets: list[str]
    example_id: np.ndarray
    rejected: list[str] | None
    notes: dict[str, list[str]]
    weight: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """Holds the same n examples as token ids; completions are not truncated yet.

    Attributes:
        prompts: n prompts, truncated to S tokens.
        bare: n flags, true if truncation left only the prompt template.
        documents: ids of the n untruncated documents, without the template.
        targets: ids of the n targets, including the end token.
        rejected: likewise of the rejected responses; None if the task has none.
        end_id: the token that ends a completion, truncated or not; None if there is no such token.
    """

    prompts: list[EncodedPrompt]
    bare: list[bool]
    documents: list[list[int]]
    targets: list[list[int]]
    rejected: list[list[int]] | None
    end_id: int | None


def encode(texts: TextExamples, tokenizer: Tokenizer, sizes: Sizes) -> EncodedExamples:
    """Encode examples with the tokenizer of the model that reads them."""
    completions = lambda column: column and [tokenizer.encode_completion(x) for x in column]
    prompts = [tokenizer.encode_prompt(prompt, sizes.inputs) for prompt in texts.text_prompts]
    return EncodedExamples(
        prompts=prompts,
        bare=[
            x.cut > 0 and x.cut == tokenizer.document_size(prompt)
            for x, prompt in zip(prompts, texts.text_prompts, strict=True)
        ],
        documents=[tokenizer.encode(x.document) for x in texts.text_prompts],
        targets=completions(texts.targets),
        rejected=completions(texts.rejected),
        end_id=tokenizer.end_id,
    )


def examples_of(
    texts: TextExamples, ids: EncodedExamples, sizes: Sizes, decode: Decode, name: str
) -> Examples:
    """Build examples as arrays; warn once per `name` of truncated and dropped examples.

    Args:
        texts, ids: the same n examples as text and as token ids.
        sizes: maximum lengths; completions are truncated here, prompts already are.
        decode: maps ids to text, to find the keywords that remain in a truncated document.
        name: of the task and the split, for messages.

    Raises:
        ValueError: every example was dropped.
    """
    inputs = Padded(*pad_sequences([x.ids for x in ids.prompts], sizes.inputs))
    warn = functools.partial(_warn_truncated, name, hash(texts.example_id.tobytes()))
    warn("inputs", sizes.inputs, [x.cut > 0 for x in ids.prompts])
    for kind, completions in (("targets", ids.targets), ("rejected", ids.rejected or [])):
        warn(kind, sizes.targets, [len(x) > sizes.targets for x in completions])
    targets = _fit(ids.targets, ids.end_id, sizes.targets)
    rejected = ids.rejected and _fit(ids.rejected, ids.end_id, sizes.targets)
    example_id = make_ids_unique(texts.example_id, name)
    kept = _kept_rows(_drop_reasons(texts, ids, targets, rejected), example_id, sizes, name)
    pick = lambda column: [column[i] for i in kept]
    inputs, targets, rejected = jax.tree.map(lambda x: x[kept], (inputs, targets, rejected))
    text_prompts = _without_lost_keywords(
        pick(texts.text_prompts), pick(ids.prompts), decode, sizes.inputs, name
    )
    notes = {note: pick(column) for note, column in texts.notes.items()}
    return Examples(
        inputs=Prompts(inputs.tokens, inputs.lengths),
        targets=targets,
        example_id=example_id[kept],
        text_prompts=text_prompts,
        summaries=pick(texts.targets),
        notes=notes,
        document=Ragged.of(pick(ids.documents)),
        rejected=rejected,
        keywords=keyword_bytes([x.keywords for x in text_prompts]) if KEYWORDS in notes else None,
        weight=None if texts.weight is None else texts.weight[kept],
    )


def dropped_counts(name: str) -> dict[str, int]:
    """Return how many examples the last reading of this task and split dropped, by reason."""
    return _dropped_counts.get(name, {})


def _fit(sequences: list[list[int]], end_id: int | None, size: int) -> Padded:
    """Truncate completions to [n, size]; truncated ones still end with the end token."""
    ending = [] if end_id is None else [end_id]
    fitted = [x[: size - len(ending)] + ending if len(x) > size else x for x in sequences]
    return Padded(*pad_sequences(fitted, size))


def _warn_truncated(
    name: str, examples: int, kind: str, size: int, truncated: Sequence[bool]
) -> None:
    """Warn once of what is truncated in the examples of a name and a hash."""
    if any(truncated):
        warn_once(
            f"{name}: {sum(truncated)} of {len(truncated)} {kind} are longer than {size} tokens "
            "and were cut",
            about=(name, examples, kind, size),  # a run reads a split many times
        )


def _drop_reasons(
    texts: TextExamples, ids: EncodedExamples, targets: Padded, rejected: Padded | None
) -> dict[str, np.ndarray]:
    """Return a mask bool [n] of the examples to drop for each reason."""
    no_document = np.array(
        [not any(x != ids.end_id for x in document) for document in ids.documents]
    )
    empty = _is_empty(targets, ids.end_id)
    if empty.all() and not any(text.strip() for text in texts.targets):
        empty = np.zeros_like(empty)
    reasons = {
        "empty inputs": no_document,
        "only the prompt is left of the inputs": np.array(ids.bare),
        "empty targets": empty,
    }
    if rejected is not None:
        reasons["empty rejected text"] = _is_empty(rejected, ids.end_id)
        same = (targets.tokens == rejected.tokens).all(axis=1)
        reasons["chosen and rejected are the same"] = same & (targets.lengths == rejected.lengths)
    return reasons


def _is_empty(ids: Padded, end_id: int | None) -> np.ndarray:
    """Return bool [n], true where ids [n, T] hold no token but the end token."""
    return ~(np.asarray(ids.mask) & (ids.tokens != end_id)).any(axis=1)


def _kept_rows(
    reasons: dict[str, np.ndarray], example_id: np.ndarray, sizes: Sizes, name: str
) -> np.ndarray:
    """Return the row numbers of the examples that no reason drops; warn of the others.

    Raises:
        ValueError: every example is dropped.
    """
    kept = np.ones(len(example_id), bool)
    counts = {}
    for reason, applies in reasons.items():
        if count := int(np.count_nonzero(kept & applies)):
            counts[reason] = count
        kept &= ~applies
    _dropped_counts[name] = counts
    summary = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
    if not kept.any():
        raise ValueError(
            f"{name}: none of the {len(kept)} examples is usable at inputs of {sizes.inputs} and "
            f"targets of {sizes.targets} tokens ({summary}); raise INPUTS or TARGETS, or "
            "correct the data"
        )
    if counts:
        dropped = example_id[~kept].astype(str)
        more = "" if len(dropped) <= _MAX_SHOWN_IDS else " ..."
        warn_once(
            f"{name}: DROPPED {len(dropped)} of {len(kept)} examples, which are not usable "
            f"({summary}); their ids: {', '.join(dropped[:_MAX_SHOWN_IDS])}{more}"
        )
    return np.flatnonzero(kept)


def _without_lost_keywords(
    text_prompts: list[Prompt], prompts: list[EncodedPrompt], decode: Decode, size: int, name: str
) -> list[Prompt]:
    """Remove the keywords that were lost when their documents were truncated."""
    result, num_lost, num_emptied = list(text_prompts), 0, 0
    for i, (prompt, encoded) in enumerate(zip(text_prompts, prompts, strict=True)):
        if not encoded.cut or not prompt.keywords:
            continue
        whole, cut = prompt.render(), decode(encoded.ids)
        kept = tuple(x for x in prompt.keywords if coverage(cut, [x]) or not coverage(whole, [x]))
        if len(kept) < len(prompt.keywords):
            result[i] = dataclasses.replace(prompt, keywords=kept)
            num_lost, num_emptied = num_lost + 1, num_emptied + (not kept)
    if num_lost:
        warn_once(
            f"{name}: truncation to {size} tokens removed keywords from {num_lost} of "
            f"{len(text_prompts)} documents; these keywords are DROPPED, and {num_emptied} "
            "documents have no keyword left"
        )
    return result
