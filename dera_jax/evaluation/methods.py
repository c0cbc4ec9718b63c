"""Runs decoding methods on the same documents and counts the tokens that each output costs.

The cost of an output is the number of tokens processed: prompt tokens of every component model,
each token fed to each decoder, and the tokens that reward models process. λ = 0 and λ = 1 run a
single model; any other λ runs two.

Axes: B documents of a batch, n samples and A outputs of each, T output length.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data.documents import Documents, document_record
from dera_jax.decoding.beam_search import NBest, Search, beam_search, check_search
from dera_jax.decoding.best_of_n import winners
from dera_jax.decoding.realign import LAMBDA, Realigned, RealignedAdapters
from dera_jax.decoding.sampling import Sampling, check_sampling, prefill, sample_from
from dera_jax.evaluation import record_store
from dera_jax.evaluation.method_setup import MethodSetup, check_prompt
from dera_jax.evaluation.sweep import PART
from dera_jax.files import fingerprints
from dera_jax.models.language_model import (
    LanguageModel,
    sequence_keys,
)
from dera_jax.rewards.protocol import Reward, check_rewards
from dera_jax.rewards.scoring import RewardScorer

_SAMPLES_PER_CALL = 64  # at most, for each document


@dataclasses.dataclass(frozen=True)
class MethodOutputs:
    """Holds the outputs of a method for B documents.

    Attributes:
        tokens: int32 [B, A, T]. The A outputs of a document count equally: metrics are their means.
        lengths: int32 [B, A], the end token included.
        finished: bool [B, A]; False where the length limit cut an output off.
        forward_tokens: int [B, A], tokens processed for each output.
        details: further entries of each document's record.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    forward_tokens: np.ndarray
    details: Sequence[Mapping[str, object]]


class Method(Protocol):
    """Defines a decoding method; `name` names its row in tables and its folder."""

    name: str

    def answer(self, setup: MethodSetup, rows: np.ndarray) -> MethodOutputs:
        """Returns the outputs for the documents with row numbers `rows` [B] of the setup."""


@dataclasses.dataclass(frozen=True)
class SamplingMethod:
    """Samples n sequences of each document and returns all of them, or only the best of n.

    Attributes:
        name: name of the method.
        n: sequences sampled for each document.
        lam: mixing coefficient λ.
        best: whether to return only the sequence with the highest guiding reward (best-of-n).
        greedy: whether to decode greedily instead of sampling; n must then be 1.
        prompt: prompt template, see `MethodSetup.prompts`.
        temperature: divides the combined logits; > 0.
        top_k: number of most likely tokens to sample from; None for all.

    Raises:
        ValueError: a field has a wrong type or is out of its range, or n is not 1 with greedy.
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
        positive = checks.integer(1)
        checks.check_fields(self, name=checks.TEXT, n=positive, lam=LAMBDA, best=checks.FLAG)
        check_sampling(Sampling(1, self.greedy, self.temperature, self.top_k))
        check_prompt(self.prompt, has_keywords=True)
        if self.greedy and self.n > 1:
            raise ValueError(f"SamplingMethod.n must be 1 for greedy decoding; found {self.n}")

    def answer(self, setup: MethodSetup, rows: np.ndarray) -> MethodOutputs:
        """See `Method`; raises as `MethodSetup.at`, `.prompts`, `sample_from` and the reward."""
        model, params = setup.at(self.lam)
        prompts = setup.prompts(self.prompt, rows, self.lam)
        sequences = self._sample(setup, rows, model, params, prompts)
        lengths, prompt_lengths = sequences[1], prompts.lengths[:, None]
        details = [{}] * len(rows)
        if not self.best:
            cost = num_models(model) * (prompt_lengths + lengths)
            return MethodOutputs(*sequences, cost, details)
        rewards, scored_tokens = self._score(setup, rows, sequences)
        decoded_tokens = prompt_lengths + np.sum(lengths, axis=1, keepdims=True)
        cost = num_models(model) * decoded_tokens + scored_tokens
        index = np.asarray(winners(rewards, self.n))
        pick = lambda x: np.take_along_axis(x, index.reshape(-1, 1, *[1] * (x.ndim - 2)), 1)
        return MethodOutputs(*map(pick, sequences), cost, details)

    def _sample(
        self, setup: MethodSetup, rows: np.ndarray, model, params, prompts
    ) -> list[np.ndarray]:
        """Returns tokens [B, n, T], lengths and finished [B, n], drawn chunk by chunk."""
        sampling = Sampling(setup.max_length, self.greedy, self.temperature, self.top_k)
        calls = -(-self.n // _SAMPLES_PER_CALL)
        numbers = np.arange(calls * -(-self.n // calls)).reshape(calls, -1)
        ids = setup.documents.example_id[rows]
        prefilled = prefill(model, params, prompts, numbers.shape[1], setup.max_length)
        chunks = []
        for chunk_numbers in numbers:
            keys = sequence_keys(setup.seed, ids, chunk_numbers)
            out = sample_from(model, params, prefilled, keys, sampling)
            chunks.append(jax.tree.map(np.asarray, (out.tokens, out.lengths, out.finished)))
        return [np.concatenate(x, axis=1)[:, : self.n] for x in zip(*chunks, strict=True)]

    def _score(
        self, setup: MethodSetup, rows: np.ndarray, sequences: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns rewards [B, n] and the tokens processed for them [B, 1], chunk by chunk."""
        guide, chunks, forward_tokens = setup.guide(rows), [], 0
        for start in range(0, self.n, _SAMPLES_PER_CALL):
            chunk = tuple(x[:, start : start + _SAMPLES_PER_CALL] for x in sequences)
            chunks.append(guide.score(chunk)[0])
            forward_tokens = forward_tokens + scoring_tokens(setup, rows, texts=chunk[1].shape[1])
        rewards = np.concatenate(chunks, axis=1)
        check_rewards(rewards, setup.scorer.reward)
        return rewards, forward_tokens[:, None]


@dataclasses.dataclass(frozen=True)
class SearchMethod:
    """Runs beam search, guided by the setup's reward (DeAL) or not; returns the best hypothesis.

    Attributes:
        name: name of the method.
        search: settings of the beam search.
        lam: mixing coefficient λ.
        guided: whether the setup's reward guides the search.
        prompt: prompt template, see `MethodSetup.prompts`.

    Raises:
        ValueError: a field has a wrong type or is out of its range, see `check_search`.
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

    def answer(self, setup: MethodSetup, rows: np.ndarray) -> MethodOutputs:
        """See `Method`; records have `n_best`, the final hypotheses with the parts of their scores.

        Raises:
            ValueError, FloatingPointError: as `MethodSetup.at`, `.prompts` and `beam_search`.
        """
        model, params = setup.at(self.lam)
        prompts = setup.prompts(self.prompt, rows, self.lam)
        keys = sequence_keys(setup.seed, setup.documents.example_id[rows], [0])
        guide = setup.guide(rows) if self.guided else None
        n_best = beam_search(model, params, prompts, keys, self.search, guide)
        only_search = lambda x: np.asarray(x)[:, 0] if np.ndim(x) else np.asarray(x)  # G = 1
        n_best = jax.tree.map(only_search, n_best)
        cost = num_models(model) * (prompts.lengths + n_best.forward_tokens)
        if self.guided:
            scored = scoring_tokens(setup, rows, texts=self._candidates_per_round())
            cost = cost + n_best.rounds * scored
        best = jax.tree.map(lambda x: x[:, :1], n_best.pool)
        details = [{"n_best": _n_best(n_best, b, setup.tokenizer)} for b in range(len(rows))]
        return MethodOutputs(best.tokens, best.lengths, best.finished, cost[:, None], details)

    def _candidates_per_round(self) -> int:
        search = self.search
        return search.beams * (search.top_k + (search.period > 1))


def num_models(model: LanguageModel) -> int:
    """Returns how many component models process each token that is fed to the model."""
    return model.num_models if isinstance(model, Realigned | RealignedAdapters) else 1


def scoring_tokens(setup: MethodSetup, rows: np.ndarray, texts: int) -> np.ndarray:
    """Returns int [B], the tokens that reward models process to score `texts` outputs of each."""
    prompt_lengths = setup.documents.prompts.lengths[rows]
    forward_tokens = setup.scorer.reward.forward_tokens
    return np.array([forward_tokens(int(n), texts, setup.max_length) for n in prompt_lengths])


def _scores(scorer: RewardScorer, documents: Documents, rows: np.ndarray, *outputs: Array):
    return scorer(documents.source(rows), [documents.texts[i] for i in rows], *outputs)


def _n_best(n_best: NBest, b: int, tokenizer: Tokenizer) -> list[dict]:
    """Returns the final hypotheses of document b, best first, with the parts of their scores."""
    pool = n_best.pool
    return [
        {
            "text": tokenizer.decode(pool.tokens[b, n, : pool.lengths[b, n]]),
            "finished": bool(pool.finished[b, n]),
            "score": float(n_best.scores[b, n]),
            "log_prob": float(pool.log_probs[b, n]),
            "reward": float(pool.rewards[b, n]),
            **{f"{PART}{name}": float(x[b, n]) for name, x in n_best.parts.items()},
        }
        for n in np.flatnonzero(pool.lengths[b])  # places of length 0 are empty
    ]


def run(method: Method, setup: MethodSetup, folder: Path) -> list[dict]:
    """Runs a method on all documents and writes their records; resumes a run that was stopped.

    Args:
        method: the method.
        setup: the models, documents and rewards.
        folder: folder for the records of this method with this setup only.

    Returns:
        One record per document, as of `sweep.decode`, with the method's outputs as its samples.

    Raises:
        FileExistsError, ValueError, OSError: as `record_store.write`.
    """
    documents = setup.documents
    settings = {"method": fingerprints.describe(method)} | setup.description
    plan = record_store.Plan(settings, documents.sha256, documents.example_id, setup.batch_size)

    def decode(rows: np.ndarray) -> list[dict]:
        return _records(setup, np.unique(rows), method.answer(setup, rows))

    return record_store.write(plan, decode, folder, method.name)


def _records(setup: MethodSetup, rows: np.ndarray, outputs: MethodOutputs) -> list[dict]:
    """Returns the records of the first len(rows) outputs; those after them are batch padding."""
    fields = outputs.tokens, outputs.lengths, outputs.finished
    sequences = [x[: len(rows)] for x in fields]
    reward, parts = _scores(setup.measured, setup.documents, rows, *sequences)
    rewards = {"reward": reward} | {f"{PART}{name}": x for name, x in parts.items()}
    return [_record(setup, row, b, outputs, rewards) for b, row in enumerate(rows)]


def _record(setup: MethodSetup, row: int, b: int, outputs: MethodOutputs, rewards: Mapping) -> dict:
    samples = []
    for a, (length, finished) in enumerate(
        zip(outputs.lengths[b], outputs.finished[b], strict=True)
    ):
        tokens = outputs.tokens[b, a, :length].tolist()
        samples.append(
            {
                "text": setup.tokenizer.decode(tokens),
                "tokens": tokens,
                "length": int(length - finished),
                "finished": bool(finished),
                "forward_tokens": int(outputs.forward_tokens[b, a]),
                **{name: float(x[b, a]) for name, x in rewards.items()},
            }
        )
        samples[-1] |= setup.measured.reward.text_metrics(samples[-1]["text"], bool(finished))
    return {**document_record(setup.documents, row), "samples": samples, **outputs.details[b]}
