"""Decodes documents at every λ of a sweep: one compiled call for each batch, all λ included.

Each document gives one record with all its samples (see `record_store`). Tables and plots are made
from the records, so a run that was stopped resumes and decodes no document twice.

Axes: B documents of a batch, G values of λ, M aligned models, K = G × samples at each λ.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from dera_jax import checks
from dera_jax.data.documents import Documents, document_record
from dera_jax.decoding.realign import LAMBDA, LAMBDAS, with_lam
from dera_jax.decoding.sampling import (
    Prefilled,
    Samples,
    Sampling,
    check_sampling,
    prefill,
    sample,
    sample_from,
    sweep_hypotheses,
)
from dera_jax.evaluation import record_store
from dera_jax.files import fingerprints
from dera_jax.models.language_model import (
    LanguageModel,
    PyTree,
    sequence_keys,
)
from dera_jax.rewards.protocol import REWARD, Reward, check_limit
from dera_jax.rewards.scoring import RewardScorer

PART = "reward_"  # prefix of the columns of the parts of a reward


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Holds the settings of a λ sweep.

    Attributes:
        lams: the G values of λ; for M > 1 aligned models each is a tuple of M. Empty for a single model.
        num_samples: samples of each document at each λ.
        sampling: sampling settings.
        reward: the reward that scores all samples; None for no scores.
        batch_size: documents per compiled call.
        seed: seed of all PRNG keys.

    Raises:
        ValueError: there is no λ or one twice, a field has a wrong type or is out of its range, or
            the length limit is below the reward's minimum.
    """

    lams: tuple[float | tuple[float, ...], ...]
    num_samples: int
    sampling: Sampling
    reward: Reward | None
    batch_size: int
    seed: int

    def __post_init__(self):
        checks.check_fields(
            self,
            lams=LAMBDAS if self.lams else checks.sequence(LAMBDA, "()", least=0),
            num_samples=checks.integer(1),
            sampling=checks.instance(Sampling),
            reward=checks.optional(REWARD),
            batch_size=checks.integer(1),
            seed=checks.SEED,
        )
        checks.check_distinct("Sweep.lams", self.lams)
        check_sampling(self.sampling)
        if self.reward is not None:
            check_limit(self.reward, self.sampling.max_length)

    @property
    def hypotheses(self) -> list[tuple[float | list[float] | None, int]]:
        """λ (None for a single model) and sample number of each hypothesis of a document."""
        lams = [float(x) if np.ndim(x) == 0 else [float(y) for y in x] for x in self.lams]
        return [(lam, i) for lam in lams or [None] for i in range(self.num_samples)]


def decode(
    model: LanguageModel,
    params: PyTree,
    documents: Documents,
    sweep: Sweep,
    to_text: Callable[[Sequence[int]], str],
    folder: Path,
    prefills: dict[int, Prefilled] | None = None,
    reward_params: PyTree = None,
) -> list[dict]:
    """Decodes all documents at every λ and writes their records; resumes a run that was stopped.

    Args:
        model: a realigned model.
        params: its parameters.
        documents: the documents.
        sweep: the settings.
        to_text: function from token ids to text.
        folder: folder for the records of this sweep only.
        prefills: cache of prefilled prompts by the first row number of a batch, which this call
            fills. A later sweep over the same documents with equal batch size, number of λ and of
            samples, and maximum length reuses it. None keeps nothing.
        reward_params: parameters of the sweep's reward.

    Returns:
        One record per document: example_id, document, summary, keywords if the task has them, and
        samples (one dict per λ and sample).

    Raises:
        FileExistsError, ValueError, OSError: as `record_store.write`.
    """
    scorer = sweep.reward and RewardScorer(sweep.reward, reward_params, to_text)

    def decode_batch(rows: np.ndarray) -> list[dict]:
        sample_batch = functools.partial(_sample_batch, model, params, prefills, int(rows[0]))
        return _decode_batch(sample_batch, documents, sweep, to_text, scorer, rows)

    settings = {
        "sweep": fingerprints.describe(sweep),
        "model": fingerprints.describe(model),
        "parameters": fingerprints.hash_arrays((params, reward_params)),
    }
    plan = record_store.Plan(
        settings,
        documents.sha256,
        documents.example_id,
        sweep.batch_size,
        samples=sweep.hypotheses,
    )
    return record_store.write(plan, decode_batch, folder, "decoding")


def _sample_batch(model, params, prefills, batch, prompts, keys, sampling) -> Samples:
    if prefills is None:
        return sample(model, params, prompts, keys, sampling)
    if batch not in prefills:
        size = keys.shape[1], sampling.max_length
        prefills[batch] = prefill(model, params, prompts, *size)
    prefilled = prefills[batch]
    at_lam = prefilled.replace(state=with_lam(prefilled.state, prompts.lam))
    return sample_from(model, params, at_lam, keys, sampling)


def _decode_batch(sample_batch, documents, sweep, to_text, scorer, rows) -> list[dict]:
    lam, numbers = None, np.arange(sweep.num_samples, dtype=np.int32)
    if sweep.lams:
        lam, numbers = sweep_hypotheses(sweep.lams, sweep.num_samples, len(rows))
    keys = sequence_keys(sweep.seed, documents.example_id[rows], numbers)
    out = sample_batch(documents.prompts_of(rows, lam), keys, sweep.sampling)
    rewards = _rewards(scorer, documents, rows, out)
    out = jax.tree.map(np.asarray, out)
    records = []
    for b, row in enumerate(rows):
        if b and row == rows[b - 1]:
            break  # batch padding
        samples = [
            {
                "lam": at,
                "sample": number,
                **{name: None if x is None else x[b, k].item() for name, x in rewards.items()},
                **_describe(out, b, k, to_text),
            }
            for k, (at, number) in enumerate(sweep.hypotheses)
        ]
        for x in samples if sweep.reward is not None else ():
            x |= sweep.reward.text_metrics(x["text"], x["finished"])
        records.append({**document_record(documents, row), "samples": samples})
    return records


def _rewards(
    scorer: RewardScorer | None, documents: Documents, rows: np.ndarray, out: Samples
) -> dict:
    """Returns the reward, its parts as reward_<name> and its metrics, [B, K] each."""
    if scorer is None:
        return {"reward": None}
    sequences = out.tokens, out.lengths, out.finished
    if scorer.reward.on_host:  # a Python reward is not called on batch padding
        rows = np.unique(rows)
        sequences = tuple(x[: len(rows)] for x in sequences)
    batch_documents = [documents.texts[i] for i in rows]
    total, parts = scorer(documents.source(rows), batch_documents, *sequences)
    rewards = {"reward": total} | {f"{PART}{name}": values for name, values in parts.items()}
    return rewards | jax.tree.map(np.asarray, dict(scorer.reward.metrics(*sequences[1:])))


def _describe(out: Samples, b: int, k: int, to_text: Callable) -> dict:
    """Describes a hypothesis: text, tokens, length without the end token, summed scores (nats)."""
    length = int(out.lengths[b, k])
    scores, parts = out.scores, out.scores.part_log_prob
    return {
        "text": to_text(out.tokens[b, k, :length]),
        "tokens": out.tokens[b, k, :length].tolist(),
        "length": length - int(out.finished[b, k]),
        "finished": bool(out.finished[b, k]),
        "kl": None if scores.kl is None else float(scores.kl[b, k].sum()),
        "log_prob": float(scores.log_prob[b, k].sum()),
        "sampling_log_prob": float(scores.sampling_log_prob[b, k].sum()),
        "part_log_probs": None if parts is None else [float(x) for x in parts[:, b, k].sum(-1)],
    }
