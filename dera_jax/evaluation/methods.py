"""Decoding methods side by side: each answers every document, and what it costs is counted.

The cost of an answer is in model token-positions: the tokens of the input for each encoder, each
token fed to each decoder, and what models that judge texts read. λ = 0 and λ = 1 are single models
and cost one; any other λ costs two.

Axes: B documents at once, K texts of each, T output length, S input length.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax import Array

from dera_jax import checks, fingerprints
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.decoding.beam_search import NBest, Search, beam_search, check_search
from dera_jax.decoding.best_of_n import winners
from dera_jax.decoding.realign import LAMBDA, Realigned
from dera_jax.decoding.sampling import Sampling, check_sampling, prefill, sample_from
from dera_jax.evaluation import shards
from dera_jax.evaluation.bench import Bench, check_prompt
from dera_jax.evaluation.sweep import PART, Documents, about
from dera_jax.models.language_model import (
    LanguageModel,
    sequence_keys,
)
from dera_jax.rewards.combined import Combined
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import Reward, check_rewards
from dera_jax.rewards.words import WordsInRange, words_within

_ROWS = 64  # texts of a document sampled in one call, at most


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
        prompt: see `Bench.prompts`.
        temperature, top_k: see `Sampling`.

    Raises:
        ValueError: a setting out of its range, or n is not 1 for greedy texts.
    """

    name: str
    n: int = 1
    lam: float = 0.0
    best: bool = False
    greedy: bool = False
    prompt: str | None = None
    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self):
        one = checks.whole(1)
        checks.check_fields(self, name=checks.TEXT, n=one, lam=LAMBDA, best=checks.FLAG)
        check_sampling(Sampling(1, self.greedy, self.temperature, self.top_k))
        check_prompt(self.prompt, has_keywords=True)
        if self.greedy and self.n > 1:
            raise ValueError(f"Sampled.n must be 1 for greedy texts; found {self.n}")

    def answer(self, bench: Bench, rows: np.ndarray) -> Answers:
        """See `Method`."""
        model, params = bench.at(self.lam)
        prompts = bench.prompts(self.prompt, rows, self.lam)
        texts = self._sample(bench, rows, model, params, prompts)
        read, nothing = prompts.lengths[:, None], [{}] * len(rows)
        if not self.best:
            return Answers(*texts, num_models(model) * (read + texts[1]), nothing)
        rewards, judging = self._judge(bench, rows, texts)
        cost = num_models(model) * (read + np.sum(texts[1], axis=1, keepdims=True)) + judging
        index = np.asarray(winners(rewards, self.n))
        best = (np.take_along_axis(x, index.reshape(-1, 1, *[1] * (x.ndim - 2)), 1) for x in texts)
        return Answers(*best, cost, nothing)

    def _sample(self, bench: Bench, rows: np.ndarray, model, params, prompts) -> list[np.ndarray]:
        """Tokens [B, n, T], lengths and finished [B, n], piece by piece; the encoder works once."""
        sampling = Sampling(bench.max_length, self.greedy, self.temperature, self.top_k)
        calls = -(-self.n // _ROWS)
        numbers = np.arange(calls * -(-self.n // calls)).reshape(calls, -1)
        ids = bench.documents.example_id[rows]
        prefilled = prefill(model, params, prompts, numbers.shape[1], bench.max_length)
        pieces = []
        for some in numbers:
            keys = sequence_keys(bench.seed, ids, some)
            out = sample_from(model, params, prefilled, keys, sampling)
            pieces.append(jax.tree.map(np.asarray, (out.tokens, out.lengths, out.finished)))
        return [np.concatenate(x, axis=1)[:, : self.n] for x in zip(*pieces, strict=True)]

    def _judge(
        self, bench: Bench, rows: np.ndarray, texts: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards [B, n], and the positions [B, 1] that judging took, a piece at a time."""
        guide, pieces, positions = bench.guide(rows), [], 0
        for start in range(0, self.n, _ROWS):
            piece = tuple(x[:, start : start + _ROWS] for x in texts)
            pieces.append(guide.score(piece)[0])
            positions = positions + judging(bench, rows, texts=piece[1].shape[1])
        rewards = np.concatenate(pieces, axis=1)
        check_rewards(rewards, bench.judge.reward)
        return rewards, positions[:, None]


@dataclasses.dataclass(frozen=True)
class Searched:
    """Beam search, guided by the reward or not; the best text found is the answer.

    Attributes:
        name: of the method.
        search: how.
        lam: λ.
        guided: by the bench's reward.
        prompt: see `Bench.prompts`.

    Raises:
        ValueError: a setting out of its range, see `check_search`.
    """

    name: str
    search: Search
    lam: float = 0.0
    guided: bool = True
    prompt: str | None = None

    def __post_init__(self):
        search = checks.instance(Search)
        checks.check_fields(self, name=checks.TEXT, search=search, lam=LAMBDA, guided=checks.FLAG)
        check_prompt(self.prompt, has_keywords=True)
        check_search(self.search, None, Reward() if self.guided else None)

    def answer(self, bench: Bench, rows: np.ndarray) -> Answers:
        """See `Method`; the record holds `n_best`, with what each score is made of."""
        model, params = bench.at(self.lam)
        prompts = bench.prompts(self.prompt, rows, self.lam)
        keys = sequence_keys(bench.seed, bench.documents.example_id[rows], [0])
        guide = bench.guide(rows) if self.guided else None
        found = beam_search(model, params, prompts, keys, self.search, guide)
        found = jax.tree.map(lambda x: np.asarray(x)[:, 0] if np.ndim(x) else np.asarray(x), found)
        cost = num_models(model) * (prompts.lengths + found.positions)
        if self.guided:
            cost = cost + found.rounds * judging(bench, rows, texts=self._texts_per_round())
        best = jax.tree.map(lambda x: x[:, :1], found.pool)
        details = [{"n_best": _n_best(found, b, bench.tokenizer)} for b in range(len(rows))]
        return Answers(best.tokens, best.lengths, best.finished, cost[:, None], details)

    def _texts_per_round(self) -> int:
        search = self.search
        return search.beams * (search.top_k + (search.period > 1))


def num_models(model: LanguageModel) -> int:
    """What is fed where the model is fed."""
    return len(model.models) if isinstance(model, Realigned) else 1


def judging(bench: Bench, rows: np.ndarray, texts: int) -> np.ndarray:
    """int [B], positions that the reward's own models read to judge so many texts of each."""
    read = bench.documents.prompts.lengths[rows]
    positions = bench.judge.reward.positions
    return np.array([positions(int(size), texts, bench.max_length) for size in read])


def _judged(judge: Judge, documents: Documents, rows: np.ndarray, *texts: Array):
    return judge(documents.source(rows), [documents.texts[i] for i in rows], *texts)


def _n_best(found: NBest, b: int, tokenizer: Tokenizer) -> list[dict]:
    """The texts found for one document, the best first, and what their scores are made of."""
    texts = found.pool
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
    """Answers all documents into `folder`, after those that are there already.

    Args:
        folder: of this method with these settings alone.

    Returns:
        One record per document, as of `sweep.decode`, with the method's answers as its samples.

    Raises:
        FileExistsError, ValueError, OSError: as `shards.write`.
    """
    documents = bench.documents
    settings = {"method": fingerprints.describe(method)} | bench.description
    plan = shards.Plan(settings, documents.sha256, documents.example_id, bench.batch_size)

    def decode(rows: np.ndarray) -> list[dict]:
        return _records(bench, np.unique(rows), method.answer(bench, rows))

    return shards.write(plan, decode, folder, method.name)


def _records(bench: Bench, rows: np.ndarray, answers: Answers) -> list[dict]:
    """Of the first len(rows) documents; what follows fills the batch."""
    texts = [x[: len(rows)] for x in (answers.tokens, answers.lengths, answers.finished)]
    reward, parts = _judged(bench.measured, bench.documents, rows, *texts)
    measures = {"reward": reward} | {f"{PART}{name}": x for name, x in parts.items()}
    return [_record(bench, row, b, answers, measures) for b, row in enumerate(rows)]


def _record(bench: Bench, row: int, b: int, answers: Answers, measures: Mapping) -> dict:
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
    return {**about(bench.documents, row), "samples": samples, **answers.details[b]}


def _within(reward: Combined, sample: Mapping) -> dict[str, bool]:
    """Whether an answer ended within the limit of words, if the reward has one."""
    limits = [term.reward for term in reward.terms if isinstance(term.reward, WordsInRange)]
    if not limits:
        return {}
    inside = [words_within(sample["text"], limit.low, limit.high) for limit in limits]
    return {"within": sample["finished"] and all(inside)}
