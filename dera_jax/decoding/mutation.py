"""Mutation: other instructions for the same document, from which evolutionary decoding explores.

DARWIN (Hung et al. 2024, arXiv 2406.15193) has a language model rewrite the instruction. The other
mutators here need no model: a bank of templates, edits of the document, or no change at all.

Axes: B inputs.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.decoding.sampling import Sampling, check_sampling, sample
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, narrowed, padded
from dera_jax.prompts import DOCUMENT, KEYWORDS, Prompt, check_slots, check_template, fill
from dera_jax.rewards.segmentation import words_of

# The instruction comes first: a request that is too long loses its end.
REQUEST = (
    'Rewrite the instruction "{instruction}" in {number} different ways that all ask for the same. '
    "Answer with a numbered list from 1 to {number}."
)
RELEASED = Sampling(max_length=128, temperature=0.7, top_k=40)  # the length is ours
_ASKED = 5  # rewrites in an answer, as in the release
_TRIES = 8  # at an edit that no other child has
_SENTENCE_END = re.compile(r"(?<=[.!?;])(\s+)")
_NUMBER = re.compile(r"(?<!\S)([0-9]+)[.)](?!\S)")


@dataclasses.dataclass(frozen=True)
class Offspring:
    """What a mutator made of its parents.

    Attributes:
        children: B lists of as many prompts as were asked for.
        positions: int [B], token positions that the mutator's own model processed.
        fallbacks: int [B], how many attempts could not be used and gave copies of the parent.
    """

    children: list[list[Prompt]]
    positions: np.ndarray
    fallbacks: np.ndarray


class Mutator(Protocol):
    """Makes new prompts of old ones. An input's children depend on its parent and its key alone."""

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        """`number` children of each of B parents, by keys [B] of (seed, example, generation)."""


MUTATOR = checks.Check("a mutator, as the files of gin_configs/mutators give MUTATOR", callable)


@dataclasses.dataclass(frozen=True)
class Unchanged:
    """Copies of the parent: replacement without mutation."""

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        del keys
        return _without_model([[parent] * number for parent in parents])


@dataclasses.dataclass(frozen=True)
class TemplateBank:
    """Templates of a bank, each once before any is drawn again; document and keywords stay.

    The parent's own is not drawn, unless the bank has no other: the parent is no member of a
    population.

    Raises:
        ValueError: the bank is empty, a template has no slot {document}, or (when called) a template
            has the slot {keywords} and a parent has no keywords.
    """

    templates: tuple[str, ...]

    def __post_init__(self):
        checks.check_fields(self, templates=checks.several(checks.TEXT, "('{document}',)"))
        for template in self.templates:
            check_template(template, "TemplateBank")

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        self._check_keywords(parents)
        children = []
        for parent, rng in zip(parents, _generators(keys), strict=True):
            others = [x for x in self.templates if x != parent.template] or self.templates
            drawn = [others[i] for i in _deal(rng, len(others), number)]
            children.append([dataclasses.replace(parent, template=x) for x in drawn])
        return _without_model(children)

    def _check_keywords(self, parents: Sequence[Prompt]) -> None:
        asking = [x for x in self.templates if KEYWORDS in x]
        without = [b for b, parent in enumerate(parents) if not parent.keywords]
        if asking and without:
            raise ValueError(
                f"TemplateBank: the template {asking[0]!r} has the slot {{keywords}}, and parent "
                f"{without[0]} of the batch has no keywords; take the template out, or use a task "
                "with keywords."
            )


@dataclasses.dataclass(frozen=True)
class InputEdits:
    """Edits of the parent's document; template and keywords stay.

    An edit is to drop a sentence, to move one elsewhere, or to keep only the sentences that have a
    keyword as whole words in any case: drawn uniformly among those that change the document, then the
    sentence and its new place uniformly; drawn again, a few times, if it gives what another child
    has. White space around and between sentences keeps its places. A document that no edit changes
    gives copies, each a fallback.
    """

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        children, fallbacks = [], []
        for parent, rng in zip(parents, _generators(keys), strict=True):
            texts = self._edited(parent, number, rng)
            fallbacks.append(number - len(texts))
            texts = texts or [parent.document] * number
            children.append([dataclasses.replace(parent, document=x) for x in texts])
        return _without_model(children, fallbacks)

    def _edited(self, parent: Prompt, number: int, rng: np.random.Generator) -> list[str]:
        """`number` edited documents; none if no edit changes it."""
        core = parent.document.strip()
        before, after = parent.document.split(core) if core else ("", "")
        sentences, gaps = split_sentences(core)
        edits = _edits(sentences, parent.keywords)
        texts = []
        for _ in range(number if edits else 0):
            for _ in range(_TRIES):
                edit = edits[rng.integers(len(edits))]
                text = before + _join(edit(rng, sentences), gaps) + after
                if text not in texts:
                    break
            texts.append(text)
        return texts


@dataclasses.dataclass(frozen=True, eq=False)
class Rewriter:
    """A language model rewrites the instruction, all B in one call; document and keywords stay.

    As in the authors' release an answer is to be a numbered list of five, and several answers are
    drawn where more children are asked for. Whatever cannot be read gives five copies of the parent
    and is one fallback. A rewrite that has the slot {document} not once
    gets it at its end.

    Attributes:
        model: a language model, no mixture: a request has no λ.
        params: its parameters.
        encode: (text, max_tokens) -> token ids of a prompt, at most so many.
        decode: token ids to text.
        inputs: tokens of a request at most.
        sampling: how to draw; `RELEASED` has the release's temperature and top-k.
        request: what the model reads, with the slots {number} and {instruction}: the parent's
            template without its slot {document}.
        unsaid: the instruction of a template that is nothing but its slot.

    Raises:
        ValueError: the request lacks a slot, inputs is below 2, or the model does not say its end
            tokens; when called, as `sample`.
    """

    model: LanguageModel
    params: PyTree
    encode: Callable[[str, int], list[int]]
    decode: Callable[[Sequence[int]], str]
    inputs: int
    sampling: Sampling = RELEASED
    request: str = REQUEST
    unsaid: str = "summarize the text"

    def __post_init__(self):
        checks.check_fields(
            self,
            encode=checks.FUNCTION,
            decode=checks.FUNCTION,
            inputs=checks.whole(2),  # a token and the end
            sampling=checks.instance(Sampling),
            request=checks.TEXT,
            unsaid=checks.TEXT,
        )
        check_sampling(self.sampling, self.model.vocab_size)
        check_slots(self.request, "Rewriter: the request", "{number}", "{instruction}")
        if not self.model.end_ids:
            raise ValueError(
                "Rewriter.model does not say its end tokens; load it with a vocabulary"
            )

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        each = min(_ASKED, number)
        calls = -(-number // each)
        requests = self._encode([self._request(parent, each) for parent in parents])
        of_calls = jax.vmap(
            lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(calls))
        )
        samples = sample(self.model, self.params, requests, of_calls(keys), self.sampling)
        lengths = np.asarray(samples.lengths)
        lists = [
            [parse_numbered(self.decode(x[:n].tolist()), each) for x, n in zip(*some, strict=True)]
            for some in zip(np.asarray(samples.tokens), lengths, strict=True)
        ]
        children = [
            [child for one in some for child in _rewritten(parent, one, each)][:number]
            for parent, some in zip(parents, lists, strict=True)
        ]
        fallbacks = np.array([sum(one is None for one in some) for some in lists])
        return Offspring(children, requests.lengths + np.sum(lengths, axis=1), fallbacks)

    def _request(self, parent: Prompt, number: int) -> str:
        instruction = parent.template.replace(DOCUMENT, "").strip() or self.unsaid
        return fill(self.request, {"{number}": str(number), "{instruction}": instruction})

    def _encode(self, texts: Sequence[str]) -> Prompts:
        encoded = [self.encode(text, self.inputs) for text in texts]
        return narrowed(Prompts(*padded(encoded, self.inputs)))


def parse_numbered(text: str, number: int) -> list[str] | None:
    """The items of a list "1. a 2. b" or "1) a 2) b", on lines of their own or all on one.

    What stands before the first item is left out. A number followed by a point or a bracket within
    an item cannot be told from the next item's, as SentencePiece keeps no lines.

    Returns:
        `number` texts, or None unless the list has exactly the numbers 1 to `number` in order, and
        no empty item.
    """
    _, *parts = _NUMBER.split(text)
    items = [x.strip() for x in parts[1::2]]
    expected = [str(i + 1) for i in range(number)]
    return items if parts[::2] == expected and all(items) else None


def split_sentences(text: str) -> tuple[list[str], list[str]]:
    """The n sentences of a text, and the n - 1 white spaces between them; nothing is lost.

    A sentence ends where one of . ! ? ; is followed by white space.
    """
    parts = _SENTENCE_END.split(text)
    return parts[::2], parts[1::2]


def _edits(sentences: list[str], keywords: Sequence[str]) -> list[Callable]:
    """The edits that change a text of these sentences: functions of a generator and of them."""
    kept = _with_keyword(sentences, keywords)
    edits = []
    if len(sentences) > 1:
        edits.append(_drop)
    if len(set(sentences)) > 1:
        edits.append(_move)
    if 0 < len(kept) < len(sentences):
        edits.append(lambda rng, sentences: kept)
    return edits


def _join(sentences: Sequence[str], gaps: Sequence[str]) -> str:
    """The text of these sentences with the first of the gaps between them."""
    ends = [*gaps[: len(sentences) - 1], ""]
    return "".join(x + end for x, end in zip(sentences, ends, strict=True))


def _drop(rng: np.random.Generator, sentences: list[str]) -> list[str]:
    at = rng.integers(len(sentences))
    return sentences[:at] + sentences[at + 1 :]


def _move(rng: np.random.Generator, sentences: list[str]) -> list[str]:
    """One sentence at another place. At least two must differ."""
    moved = sentences
    while moved == sentences:  # a sentence that went past its equals only
        start, end = rng.choice(len(sentences), 2, replace=False)
        moved = sentences[:start] + sentences[start + 1 :]
        moved.insert(end, sentences[start])
    return moved


def _with_keyword(sentences: list[str], keywords: Sequence[str]) -> list[str]:
    """The sentences in which the words of a keyword stand in a row, as for `KeywordCoverage`."""
    spaced = lambda words: f" {' '.join(words)} "
    asked = [spaced(words) for words in map(words_of, keywords) if words]
    found = [spaced(words_of(x)) for x in sentences]
    return [x for x, words in zip(sentences, found, strict=True) if any(k in words for k in asked)]


def _rewritten(parent: Prompt, rewrites: list[str] | None, number: int) -> list[Prompt]:
    if rewrites is None:
        return [parent] * number
    bare = lambda rewrite: rewrite.replace(DOCUMENT, "").strip()
    whole = [x if x.count(DOCUMENT) == 1 else f"{bare(x)} {DOCUMENT}" for x in rewrites]
    return [dataclasses.replace(parent, template=x) for x in whole]


def _deal(rng: np.random.Generator, size: int, number: int) -> np.ndarray:
    """`number` draws from range(size), all of it before any comes again."""
    rounds = -(-number // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:number]


def _generators(keys: Array) -> list[np.random.Generator]:
    """A generator of each of keys [B]."""
    return [np.random.default_rng(data) for data in np.asarray(jax.random.key_data(keys))]


def _without_model(
    children: list[list[Prompt]], fallbacks: Sequence[int] | None = None
) -> Offspring:
    none = np.zeros(len(children), int)
    return Offspring(children, none, none if fallbacks is None else np.array(fallbacks, int))
