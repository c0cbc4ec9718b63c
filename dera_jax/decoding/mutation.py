"""Mutates prompts for evolutionary decoding: other instructions, or edits of the document.

In DARWIN (Hung et al. 2024, arXiv 2406.15193) a language model rewrites the instruction
(`Rewriter`). The other mutators need no model: they draw templates from a bank, edit the document,
or copy the parent.

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
from dera_jax.models.language_model import (
    LanguageModel,
    Prompts,
    PyTree,
    pad_sequences,
    trim_padding,
)
from dera_jax.prompts import DOCUMENT, KEYWORDS, Prompt, check_slots, check_template, fill
from dera_jax.rewards.segmentation import words_of

# The instruction comes first, because a request that is too long is cut at its end.
REQUEST = (
    'Rewrite the instruction "{instruction}" in {number} different ways that all ask for the same. '
    "Answer with a numbered list from 1 to {number}."
)
# Temperature and top-k are those of the authors' release; max_length is this project's choice.
RELEASED = Sampling(max_length=128, temperature=0.7, top_k=40)
_REWRITES = 5  # rewrites requested in one response, as in the release
_TRIES = 8  # attempts to draw an edit that no other child has
_SENTENCE_END = re.compile(r"(?<=[.!?;])(\s+)")
_NUMBER = re.compile(r"(?<!\S)([0-9]+)[.)](?!\S)")


@dataclasses.dataclass(frozen=True)
class Offspring:
    """The mutated prompts of B parents.

    Attributes:
        children: B lists of as many prompts as were requested.
        forward_tokens: int [B], tokens processed by the mutator's own model.
        fallbacks: int [B], number of failed mutations, which are replaced by copies of the parent.
    """

    children: list[list[Prompt]]
    forward_tokens: np.ndarray
    fallbacks: np.ndarray


class Mutator(Protocol):
    """Makes new prompts from parents. An input's children depend only on its parent and its key."""

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        """Makes `number` children of each of B parents, by PRNG keys [B]."""


MUTATOR = checks.Check("a mutator, such as MUTATOR of a file in gin_configs/mutators", callable)


@dataclasses.dataclass(frozen=True)
class Unchanged:
    """Returns copies of the parent, for replacement without mutation."""

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        del keys
        return _without_model([[parent] * number for parent in parents])


@dataclasses.dataclass(frozen=True)
class TemplateBank:
    """Draws templates from a bank; document and keywords are unchanged.

    Every template is drawn once before any is drawn again. The parent's own template is drawn only
    if the bank has no other, since the parent is not a member of the population.

    Attributes:
        templates: the prompt templates, each with one slot {document} and perhaps {keywords}.

    Raises:
        ValueError: the bank is empty, a template does not have exactly one slot {document}, or
            (when called) a template has the slot {keywords} and a parent has no keywords.
    """

    templates: tuple[str, ...]

    def __post_init__(self):
        checks.check_fields(self, templates=checks.sequence(checks.TEXT, "('{document}',)"))
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
                f"{without[0]} of the batch has no keywords; remove the template, or use a task "
                "with keywords."
            )


@dataclasses.dataclass(frozen=True)
class InputEdits:
    """Edits the parent's document; template and keywords are unchanged.

    An edit drops a sentence, moves a sentence, or keeps only the sentences that contain a keyword
    (as whole words, in any case). The edit is drawn uniformly among those that change the document,
    then the sentence and its new position uniformly; all are drawn again, up to a limit, if the
    result equals another child. White space around and between sentences keeps its position. A
    document that no edit changes gives copies, each counted as a fallback.
    """

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        children, fallbacks = [], []
        for parent, rng in zip(parents, _generators(keys), strict=True):
            documents = self._edited(parent, number, rng)
            fallbacks.append(number - len(documents))
            documents = documents or [parent.document] * number
            children.append([dataclasses.replace(parent, document=x) for x in documents])
        return _without_model(children, fallbacks)

    def _edited(self, parent: Prompt, number: int, rng: np.random.Generator) -> list[str]:
        """Returns `number` edited documents, or none if no edit changes the document."""
        core = parent.document.strip()
        before, after = parent.document.split(core) if core else ("", "")
        sentences, gaps = split_sentences(core)
        edits = _edits(sentences, parent.keywords)
        documents = []
        for _ in range(number if edits else 0):
            for _ in range(_TRIES):
                edit = edits[rng.integers(len(edits))]
                document = before + _join(edit(rng, sentences), gaps) + after
                if document not in documents:
                    break
            documents.append(document)
        return documents


@dataclasses.dataclass(frozen=True, eq=False)
class Rewriter:
    """Rewrites the instruction with a language model; document and keywords are unchanged.

    As in the authors' release, the model is asked for a numbered list of five rewrites; several
    responses are sampled if more children are requested. A response that cannot be parsed gives
    five copies of the parent and counts as one fallback. The slot {document} is moved to the end of
    a rewrite that does not have it exactly once. The requests of all B parents are one call.

    Attributes:
        model: a language model, not a mixture, since a request has no λ.
        params: the model's parameters.
        encode: (text, max_tokens) -> at most max_tokens token ids of a prompt.
        decode: function from token ids to text.
        inputs: maximum number of tokens of a request.
        sampling: sampling settings; `RELEASED` has the release's temperature and top-k.
        request: the model's prompt, with the slots {number} and {instruction}; the instruction is
            the parent's template without its slot {document}.
        default_instruction: the instruction to use for a template that consists of its slot only.

    Raises:
        ValueError: the request lacks a slot, `inputs` is below 2, or the model has no end token
            ids; when called, as `sample`.
    """

    model: LanguageModel
    params: PyTree
    encode: Callable[[str, int], list[int]]
    decode: Callable[[Sequence[int]], str]
    inputs: int
    sampling: Sampling = RELEASED
    request: str = REQUEST
    default_instruction: str = "summarize the text"

    def __post_init__(self):
        checks.check_fields(
            self,
            encode=checks.FUNCTION,
            decode=checks.FUNCTION,
            inputs=checks.integer(2),  # a token and the end
            sampling=checks.instance(Sampling),
            request=checks.TEXT,
            default_instruction=checks.TEXT,
        )
        check_sampling(self.sampling, self.model.vocab_size)
        check_slots(self.request, "Rewriter: the request", "{number}", "{instruction}")
        if not self.model.end_ids:
            raise ValueError(
                "Rewriter.model has no end token ids: load it with its vocabulary "
                "(load(path, vocabulary=...))."
            )

    def __call__(self, parents: Sequence[Prompt], number: int, keys: Array) -> Offspring:
        each = min(_REWRITES, number)
        calls = -(-number // each)
        requests = self._encode([self._request(parent, each) for parent in parents])
        split_keys = jax.vmap(
            lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(calls))
        )
        samples = sample(self.model, self.params, requests, split_keys(keys), self.sampling)
        lengths = np.asarray(samples.lengths)
        lists = [
            [parse_numbered(self.decode(x[:n].tolist()), each) for x, n in zip(*row, strict=True)]
            for row in zip(np.asarray(samples.tokens), lengths, strict=True)
        ]
        children = [
            [child for rewrites in row for child in _rewritten(parent, rewrites, each)][:number]
            for parent, row in zip(parents, lists, strict=True)
        ]
        fallbacks = np.array([sum(rewrites is None for rewrites in row) for row in lists])
        return Offspring(children, requests.lengths + np.sum(lengths, axis=1), fallbacks)

    def _request(self, parent: Prompt, number: int) -> str:
        instruction = parent.template.replace(DOCUMENT, "").strip() or self.default_instruction
        return fill(self.request, {"{number}": str(number), "{instruction}": instruction})

    def _encode(self, texts: Sequence[str]) -> Prompts:
        encoded = [self.encode(text, self.inputs) for text in texts]
        return trim_padding(Prompts(*pad_sequences(encoded, self.inputs)))


def parse_numbered(text: str, number: int) -> list[str] | None:
    """Parses the items of a list "1. a 2. b" or "1) a 2) b", on one line or on several.

    Text before the first item is ignored. SentencePiece keeps no line breaks, so a number followed
    by a period or bracket within an item cannot be distinguished from the start of the next item.

    Returns:
        `number` strings, or None unless the list has exactly the numbers 1 to `number` in order and
        no empty item.
    """
    _, *parts = _NUMBER.split(text)
    items = [x.strip() for x in parts[1::2]]
    expected = [str(i + 1) for i in range(number)]
    return items if parts[::2] == expected and all(items) else None


def split_sentences(text: str) -> tuple[list[str], list[str]]:
    """Splits a text into n sentences and the n - 1 white spaces between them, without loss.

    A sentence ends where one of . ! ? ; is followed by white space.
    """
    parts = _SENTENCE_END.split(text)
    return parts[::2], parts[1::2]


def _edits(sentences: list[str], keywords: Sequence[str]) -> list[Callable]:
    """Returns the edits that change a text of these sentences, as functions (rng, sentences)."""
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
    """Joins sentences with the first of the gaps between them."""
    ends = [*gaps[: len(sentences) - 1], ""]
    return "".join(x + end for x, end in zip(sentences, ends, strict=True))


def _drop(rng: np.random.Generator, sentences: list[str]) -> list[str]:
    at = rng.integers(len(sentences))
    return sentences[:at] + sentences[at + 1 :]


def _move(rng: np.random.Generator, sentences: list[str]) -> list[str]:
    """Moves a sentence to another position. At least two sentences must differ."""
    moved = sentences
    while moved == sentences:  # repeat if a sentence was moved past equal ones only
        start, end = rng.choice(len(sentences), 2, replace=False)
        moved = sentences[:start] + sentences[start + 1 :]
        moved.insert(end, sentences[start])
    return moved


def _with_keyword(sentences: list[str], keywords: Sequence[str]) -> list[str]:
    """Returns the sentences with all words of some keyword in sequence, as `KeywordCoverage`."""
    spaced = lambda words: f" {' '.join(words)} "
    phrases = [spaced(words) for words in map(words_of, keywords) if words]
    spaced_sentences = [spaced(words_of(x)) for x in sentences]
    return [
        x
        for x, words in zip(sentences, spaced_sentences, strict=True)
        if any(p in words for p in phrases)
    ]


def _rewritten(parent: Prompt, rewrites: list[str] | None, number: int) -> list[Prompt]:
    if rewrites is None:
        return [parent] * number
    bare = lambda rewrite: rewrite.replace(DOCUMENT, "").strip()
    templates = [x if x.count(DOCUMENT) == 1 else f"{bare(x)} {DOCUMENT}" for x in rewrites]
    return [dataclasses.replace(parent, template=x) for x in templates]


def _deal(rng: np.random.Generator, size: int, number: int) -> np.ndarray:
    """Draws `number` values from range(size), every value once before any is drawn again."""
    rounds = -(-number // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:number]


def _generators(keys: Array) -> list[np.random.Generator]:
    """Returns a NumPy generator for each of keys [B]."""
    return [np.random.default_rng(data) for data in np.asarray(jax.random.key_data(keys))]


def _without_model(
    children: list[list[Prompt]], fallbacks: Sequence[int] | None = None
) -> Offspring:
    zeros = np.zeros(len(children), int)
    return Offspring(children, zeros, zeros if fallbacks is None else np.array(fallbacks, int))
