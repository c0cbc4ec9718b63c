"""From texts, or from ids that a task made itself, to examples: cut, counted, left out, and said.

Left out are examples with

- empty inputs: a document without a token;
- inputs of which only the prompt is left;
- empty targets, unless no target of the split says anything, as in files without summaries;
- for tasks of pairs, an empty rejected text, or a chosen and a rejected text that are the same ids.

Keywords that stood in the document and no longer stand in what is left of it are left out too, since
nobody who reads what is left could know them.

Axes: n examples.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import EncodedPrompt, Tokenizer
from dera_jax.example_ids import distinct
from dera_jax.examples import Examples, Ragged
from dera_jax.log import warn_once
from dera_jax.models.language_model import Padded, Prompts, padded
from dera_jax.prompts import Prompt
from dera_jax.rewards.word_hashes import keyword_bytes
from dera_jax.rewards.words import coverage

KEYWORDS = "keywords"  # a note of one keyword per line
_SHOWN = 10  # example ids in a message

Decode = Callable[[Sequence[int]], str]
_left_out: dict[str, dict[str, int]] = {}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """To which lengths examples are cut, in tokens, control tokens included.

    Attributes:
        inputs: S.
        targets: T.
    """

    inputs: int
    targets: int

    def __post_init__(self):
        checks.check_fields(self, inputs=checks.whole(1), targets=checks.whole(1))


@dataclasses.dataclass(frozen=True)
class Texts:
    """n examples as text.

    Attributes:
        asked: the prompts.
        targets: what should be written.
        example_id: int32 [n].
        rejected: of tasks of pairs, where `targets` is chosen.
        notes: further texts by name.
        weight: float32 [n], how much each counts in training; None: 1.
    """

    asked: list[Prompt]
    targets: list[str]
    example_id: np.ndarray
    rejected: list[str] | None
    notes: dict[str, list[str]]
    weight: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Ids:
    """The same examples as token ids; completions are not cut yet.

    Attributes:
        prompts: cut to S tokens.
        bare: those of which only the template is left.
        documents: alone, uncut.
        targets: with what ends them.
        rejected: likewise, of tasks of pairs.
        end_id: what a completion ends with, also where it is cut; None if with nothing.
    """

    prompts: list[EncodedPrompt]
    bare: list[bool]
    documents: list[list[int]]
    targets: list[list[int]]
    rejected: list[list[int]] | None
    end_id: int | None


def encode(texts: Texts, tokenizer: Tokenizer, sizes: Sizes) -> Ids:
    """The ids of texts, by the tokenizer of the model that reads them."""
    completions = lambda some: some and [tokenizer.encode_completion(x) for x in some]
    prompts = [tokenizer.encode_prompt(prompt, sizes.inputs) for prompt in texts.asked]
    whole = lambda prompt: tokenizer.encode_prompt(prompt, 0).cut  # tokens of the document
    return Ids(
        prompts=prompts,
        bare=[
            x.cut > 0 and x.cut == whole(prompt)
            for x, prompt in zip(prompts, texts.asked, strict=True)
        ],
        documents=[tokenizer.encode(x.document) for x in texts.asked],
        targets=completions(texts.targets),
        rejected=completions(texts.rejected),
        end_id=tokenizer.end_id,
    )


def examples_of(texts: Texts, ids: Ids, sizes: Sizes, decode: Decode, name: str) -> Examples:
    """Examples as arrays; what is cut or left out is reported once per `name`.

    Args:
        texts, ids: of the same n examples.
        sizes: to which completions are cut; the prompts are.
        decode: ids to text, to see which keywords are left.
        name: of the task and the split, for messages.

    Raises:
        ValueError: nothing is left of any example.
    """
    inputs = Padded(*padded([x.ids for x in ids.prompts], sizes.inputs))
    _say_cut([x.cut > 0 for x in ids.prompts], "inputs", sizes.inputs, name)
    targets = _fit(ids.targets, "targets", ids.end_id, sizes.targets, name)
    rejected = ids.rejected and _fit(ids.rejected, "rejected", ids.end_id, sizes.targets, name)
    example_id = distinct(texts.example_id, name)
    kept = _useful(_reasons(texts, ids, targets, rejected), example_id, sizes, name)
    pick = lambda some: [some[i] for i in kept]
    inputs, targets, rejected = jax.tree.map(lambda x: x[kept], (inputs, targets, rejected))
    asked = _with_known_keywords(pick(texts.asked), pick(ids.prompts), decode, sizes.inputs, name)
    notes = {note: pick(some) for note, some in texts.notes.items()}
    return Examples(
        inputs=Prompts(inputs.tokens, inputs.lengths),
        targets=targets,
        example_id=example_id[kept],
        asked=asked,
        summaries=pick(texts.targets),
        notes=notes,
        document=Ragged.of(pick(ids.documents)),
        rejected=rejected,
        keywords=keyword_bytes([x.keywords for x in asked]) if KEYWORDS in notes else None,
        weight=None if texts.weight is None else texts.weight[kept],
    )


def left_out(name: str) -> dict[str, int]:
    """How many examples the last reading of this name left out, by reason."""
    return _left_out.get(name, {})


def _fit(sequences: list[list[int]], kind: str, end_id: int | None, size: int, name: str) -> Padded:
    """Completions [n, size], of which those that are cut end as they did."""
    ending = [] if end_id is None else [end_id]
    cut = [len(x) > size for x in sequences]
    _say_cut(cut, kind, size, name)
    fitted = [
        x[: size - len(ending)] + ending if is_cut else x
        for x, is_cut in zip(sequences, cut, strict=True)
    ]
    return Padded(*padded(fitted, size))


def _say_cut(cut: Sequence[bool], kind: str, size: int, name: str) -> None:
    if any(cut):
        warn_once(
            f"{name}: {sum(cut)} of {len(cut)} {kind} are longer than {size} tokens and were cut",
            about=(name, kind, size),  # an epoch is read many times in a run
        )


def _reasons(
    texts: Texts, ids: Ids, targets: Padded, rejected: Padded | None
) -> dict[str, np.ndarray]:
    """Which examples [n] are useless, by reason."""
    nothing = np.array([not any(x != ids.end_id for x in some) for some in ids.documents])
    empty = _is_empty(targets, ids.end_id)
    if empty.all() and not any(text.strip() for text in texts.targets):
        empty = np.zeros_like(empty)
    found = {
        "empty inputs": nothing,
        "only the prompt is left of the inputs": np.array(ids.bare),
        "empty targets": empty,
    }
    if rejected is not None:
        found["empty rejected text"] = _is_empty(rejected, ids.end_id)
        same = (targets.tokens == rejected.tokens).all(axis=1)
        found["chosen and rejected are the same"] = same & (targets.lengths == rejected.lengths)
    return found


def _is_empty(ids: Padded, end_id: int | None) -> np.ndarray:
    """Whether there is no more than the end token in ids [n, T]: bool [n]."""
    return ~(np.asarray(ids.mask) & (ids.tokens != end_id)).any(axis=1)


def _useful(
    reasons: dict[str, np.ndarray], example_id: np.ndarray, sizes: Sizes, name: str
) -> np.ndarray:
    """The numbers of the examples of which something is left.

    Raises:
        ValueError: nothing is left of any example.
    """
    kept = np.ones(len(example_id), bool)
    counts = {}
    for reason, is_so in reasons.items():
        if count := int(np.count_nonzero(kept & is_so)):
            counts[reason] = count
        kept &= ~is_so
    _left_out[name] = counts
    said = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
    if not kept.any():
        raise ValueError(
            f"{name}: nothing is left of any of its {len(kept)} examples at inputs of "
            f"{sizes.inputs} and targets of {sizes.targets} tokens ({said}); raise INPUTS or "
            "TARGETS, or mend the data"
        )
    if counts:
        gone = example_id[~kept].astype(str)
        more = "" if len(gone) <= _SHOWN else " ..."
        warn_once(
            f"{name}: LEFT OUT {len(gone)} of {len(kept)} examples, of which nothing is left to use "
            f"({said}); their ids: {', '.join(gone[:_SHOWN])}{more}"
        )
    return np.flatnonzero(kept)


def _with_known_keywords(
    asked: list[Prompt], prompts: list[EncodedPrompt], decode: Decode, size: int, name: str
) -> list[Prompt]:
    """Prompts without the keywords that were cut away with a part of their documents."""
    left, lost, emptied = list(asked), 0, 0
    for i, (prompt, encoded) in enumerate(zip(asked, prompts, strict=True)):
        if not encoded.cut or not prompt.keywords:
            continue
        whole, cut = prompt.render(), decode(encoded.ids)
        kept = tuple(x for x in prompt.keywords if coverage(cut, [x]) or not coverage(whole, [x]))
        if len(kept) < len(prompt.keywords):
            left[i] = dataclasses.replace(prompt, keywords=kept)
            lost, emptied = lost + 1, emptied + (not kept)
    if lost:
        warn_once(
            f"{name}: cutting to {size} tokens took keywords from {lost} of {len(asked)} documents; "
            f"they are LEFT OUT, and {emptied} documents have none left"
        )
    return left
