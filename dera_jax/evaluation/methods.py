"""Decoding methods side by side: each answers every document, and what it costs is counted.

The cost of an answer is in model token-positions: the tokens of the input for each encoder, each token
fed to each decoder, and what models that judge texts read. λ = 0 and λ = 1 are single models and cost
one; any other λ costs two.

Axes: B documents at once, K texts of each, T output length, S input length.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

from dera_jax.checkpoints.vocabulary import Tokenizer
from dera_jax.decoding.beam_search import NBest, Search, beam_search, beam_search_on_host
from dera_jax.decoding.best_of_n import winners
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation.pairs import Pair
from dera_jax.evaluation.sweep import (
    PART,
    RECORDS,
    Documents,
    full_batches,
    keyword_texts,
    read_records,
)
from dera_jax.models.language_model import LanguageModel, PyTree, streams
from dera_jax.rewards.combined import Combined
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.words import WordsInRange, words_within

_ROWS = 64  # texts of a document sampled in one call
_TEXT, _KEYWORDS = "{text}", "{keywords}"


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the methods of a comparison share.

    Attributes:
        pair: a reference and one aligned model.
        tokenizer: of their vocabulary.
        documents: to answer.
        judge: the reward that guides.
        measured: a sum whose parts are measured on every answer.
        max_length: T.
        batch_size: B.
        seed: of all draws.
    """

    pair: Pair
    tokenizer: Tokenizer
    documents: Documents
    judge: Judge
    measured: Judge
    max_length: int
    batch_size: int
    seed: int

    def at(self, lam: float) -> tuple[LanguageModel, PyTree]:
        """The model at λ, and its parameters."""
        model, params = self.pair.model, self.pair.params
        if lam in (0.0, 1.0):
            return model.models[int(lam)], params[int(lam)]
        return model, params

    def inputs(self, prompt: str, rows: np.ndarray) -> np.ndarray:
        """int32 [B, S]: the documents `rows` in a prompt with the slots {text} and {keywords}.

        Raises:
            ValueError: no slot for the text, or for keywords that the task does not have.
        """
        documents = self.documents
        if prompt == _TEXT:
            return documents.inputs[rows]
        if _TEXT not in prompt:
            raise ValueError(f"the prompt {prompt!r} has no slot {_TEXT} for the document")
        if _KEYWORDS in prompt and documents.keywords is None:
            raise ValueError(f"the prompt {prompt!r} has a slot {_KEYWORDS}, the task no keywords")
        return np.stack([self._prompted(prompt, row) for row in rows])

    def _prompted(self, prompt: str, row: int) -> np.ndarray:
        documents, eos = self.documents, 1
        if _KEYWORDS in prompt:
            prompt = prompt.replace(_KEYWORDS, ", ".join(keyword_texts(documents.keywords[row])))
        size = documents.inputs.shape[1]
        ids = self.tokenizer.encode(prompt.replace(_TEXT, documents.texts[row]))[: size - 1] + [eos]
        return np.pad(np.array(ids, np.int32), (0, size - len(ids)))


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a method says about B documents.

    Attributes:
        tokens: int32 [B, A, T], A answers to each, all as good: their mean is what counts.
        lengths: int32 [B, A], the end token included.
        finished: bool [B, A].
        positions: int [B, A], the cost of each answer.
        details: more for the record of each document.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    positions: np.ndarray
    details: Sequence[Mapping[str, object]]


class Method(Protocol):
    """A way to answer. `name` is that of its rows and its folder."""

    name: str

    def answer(self, bench: Bench, rows: np.ndarray) -> Answers:
        """Answers the documents `rows` [B] of the bench."""


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Samples n texts; all are answers, or with `best` the one of the highest reward is.

    Attributes:
        name: of the method.
        n: texts of each document.
        lam: λ.
        best: whether only the best of the n counts.
        greedy: the most likely text instead; n must be 1.
        prompt: see `Bench.inputs`.
    """

    name: str
    n: int = 1
    lam: float = 0.0
    best: bool = False
    greedy: bool = False
    prompt: str = _TEXT

    def answer(self, bench: Bench, rows: np.ndarray) -> Answers:
        """See `Method`."""
        model, params = bench.at(self.lam)
        inputs = bench.inputs(self.prompt, rows)
        sampling = Sampling(bench.max_length, greedy=self.greedy)
        drawn = []
        for first in range(0, self.n, _ROWS):
            numbers = np.arange(first, min(first + _ROWS, self.n))
            stream = streams(bench.seed, bench.documents.example_id[rows], numbers)
            lam = np.full(stream.shape, self.lam, np.float32)
            out = sample(model, params, inputs, lam, stream, sampling)
            drawn.append(jax.tree.map(np.asarray, (out.tokens, out.lengths, out.finished)))
        tokens, lengths, finished = (np.concatenate(x, axis=1) for x in zip(*drawn, strict=True))
        read = np.sum(inputs > 0, axis=1, keepdims=True)
        if not self.best:
            cost = _num_models(model) * (read + lengths)
            return Answers(tokens, lengths, finished, cost, [{}] * len(rows))
        rewards, _ = _judged(bench.judge, bench.documents, rows, tokens, lengths, finished)
        index = np.asarray(winners(rewards, self.n))
        pick = lambda x: np.take_along_axis(x, index, axis=1)
        cost = _num_models(model) * (read + np.sum(lengths, axis=1, keepdims=True))
        cost = cost + _judging(bench, rows, texts=self.n)[:, None]
        tokens = np.take_along_axis(tokens, index[..., None], axis=1)
        return Answers(tokens, pick(lengths), pick(finished), cost, [{}] * len(rows))


@dataclasses.dataclass(frozen=True)
class Searched:
    """Beam search, guided by the reward or not; the best text found is the answer.

    Attributes:
        name: of the method.
        search: how.
        lam: λ.
        guided: by the bench's reward.
        prompt: see `Bench.inputs`.
    """

    name: str
    search: Search
    lam: float = 0.0
    guided: bool = True
    prompt: str = _TEXT

    def answer(self, bench: Bench, rows: np.ndarray) -> Answers:
        """See `Method`; the record holds `n_best`, with what each score is made of."""
        model, params = bench.at(self.lam)
        inputs = bench.inputs(self.prompt, rows)
        stream = streams(bench.seed, bench.documents.example_id[rows], [0])
        lam = np.full(stream.shape, self.lam, np.float32)
        found = self._search(bench, rows)(model, params, inputs, lam, stream, self.search)
        found = jax.tree.map(lambda x: np.asarray(x)[:, 0] if np.ndim(x) else np.asarray(x), found)
        read = np.sum(inputs > 0, axis=1)
        cost = _num_models(model) * (read + found.positions)
        if self.guided:
            cost = cost + found.rounds * _judging(bench, rows, texts=self._texts_per_round())
        best = jax.tree.map(lambda x: x[:, :1], found.texts)
        details = [{"n_best": _n_best(found, b, bench.tokenizer)} for b in range(len(rows))]
        return Answers(best.tokens, best.lengths, best.finished, cost[:, None], details)

    def _search(self, bench: Bench, rows: np.ndarray):
        if not self.guided:
            return beam_search
        judge, source = bench.judge, bench.documents.source(rows)
        if judge.reward.on_host:
            texts = [bench.documents.texts[row] for row in rows]
            return functools.partial(
                beam_search_on_host, judge=judge, source=source, documents=texts
            )
        return functools.partial(
            beam_search, reward=judge.reward, reward_params=judge.params, source=source
        )

    def _texts_per_round(self) -> int:
        search = self.search
        return search.beams * (search.top_k + (search.period > 1))


def _num_models(model: LanguageModel) -> int:
    return len(model.models) if isinstance(model, Realigned) else 1


def _judging(bench: Bench, rows: np.ndarray, texts: int) -> np.ndarray:
    """int [B], positions that the reward's own models read to judge so many texts of each document."""
    read = np.sum(bench.documents.inputs[rows] > 0, axis=1)
    positions = bench.judge.reward.positions
    return np.array([positions(int(size), texts, bench.max_length) for size in read])


def _judged(judge: Judge, documents: Documents, rows: np.ndarray, *texts: Array):
    return judge(documents.source(rows), [documents.texts[i] for i in rows], *texts)


def _n_best(found: NBest, b: int, tokenizer: Tokenizer) -> list[dict]:
    """The texts found for one document, the best first, and what their scores are made of."""
    texts = found.texts
    return [
        {
            "text": tokenizer.decode(texts.tokens[b, n, : texts.lengths[b, n]]),
            "finished": bool(texts.finished[b, n]),
            "score": float(found.scores[b, n]),
            "log_prob": float(texts.log_probs[b, n]),
            "reward": float(texts.rewards[b, n]),
            **{f"{PART}{name}": float(x[b, n]) for name, x in found.parts.items()},
        }
        for n in np.flatnonzero(texts.lengths[b])
    ]


def run(method: Method, bench: Bench, folder: Path) -> list[dict]:
    """Answers all documents into `folder`/records.jsonl, after those that are there already.

    Returns:
        One record per document, as of `sweep.decode`, with the method's answers as its samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = read_records(folder / RECORDS)
    batches = full_batches(len(records), len(bench.documents.texts), bench.batch_size)
    with open(folder / RECORDS, "a", encoding="utf-8") as out:
        for rows in tqdm(batches, desc=method.name, unit="batch", disable=not batches):
            answers = method.answer(bench, rows)
            for record in _records(bench, np.unique(rows), answers):
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
                records.append(record)
            out.flush()
    return records


def _records(bench: Bench, rows: np.ndarray, answers: Answers) -> list[dict]:
    """Of the first len(rows) documents; what follows fills the batch."""
    texts = [x[: len(rows)] for x in (answers.tokens, answers.lengths, answers.finished)]
    reward, parts = _judged(bench.measured, bench.documents, rows, *texts)
    measures = {"reward": reward} | {f"{PART}{name}": x for name, x in parts.items()}
    return [_record(bench, row, b, answers, measures) for b, row in enumerate(rows)]


def _record(bench: Bench, row: int, b: int, answers: Answers, measures: Mapping) -> dict:
    documents = bench.documents
    record = {
        "example_id": int(documents.example_id[row]),
        "document": documents.texts[row],
        "summary": documents.summaries[row],
    }
    if documents.keywords is not None:
        record["keywords"] = keyword_texts(documents.keywords[row])
    samples = []
    for a, (length, finished) in enumerate(
        zip(answers.lengths[b], answers.finished[b], strict=True)
    ):
        tokens = answers.tokens[b, a, :length].tolist()
        samples.append(
            {
                "text": bench.tokenizer.decode(tokens),
                "tokens": tokens,
                "length": int(length - finished),
                "finished": bool(finished),
                "positions": int(answers.positions[b, a]),
                **{name: float(x[b, a]) for name, x in measures.items()},
            }
        )
        samples[-1] |= _within(bench.measured.reward, samples[-1])
    return record | {"samples": samples} | dict(answers.details[b])


def _within(reward: Combined, sample: Mapping) -> dict[str, bool]:
    """Whether an answer ended within the limit of words, if the reward has one."""
    limits = [term.reward for term in reward.terms if isinstance(term.reward, WordsInRange)]
    if not limits:
        return {}
    inside = [words_within(sample["text"], limit.low, limit.high) for limit in limits]
    return {"within": sample["finished"] and all(inside)}
