"""Aligns a model by one set of samples: `offline`, with the data, samples and checkpoints of a run.

All randomness depends on (seed, step) alone. The samples are written to files as they are drawn, so a
run that is killed at any moment resumes.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.loaded import MODEL as A_MODEL
from dera_jax.checkpoints.loaded import LoadedModel, ensure_loaded
from dera_jax.checkpoints.orbax import Saving
from dera_jax.data.examples import Examples, eval_batches
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    PyTree,
    sequence_keys,
    trim_padding,
)
from dera_jax.models.lora import with_base
from dera_jax.partitioning import mesh_in_use, partition, shard_params
from dera_jax.progress_bar import ProgressBar
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.training import loop
from dera_jax.training.offline import LogVariance
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.ppo import AlignmentObjective, source_of
from dera_jax.training.ppo_training import scorer_of, with_data_vocabulary
from dera_jax.training.supervised import DATA, TrainingData
from dera_jax.training.train_state import Batch, Memory, make_step, new_state

MODEL, SAMPLES = "aligned", "samples"
_ARRAYS = ("tokens", "lengths", "reference_log_prob", "reward")


@dataclasses.dataclass(frozen=True)
class SampleSizes:
    """Configures how many samples are drawn and used.

    Attributes:
        per_prompt: samples drawn for each prompt.
        per_step: samples of a prompt in a step, chosen anew in each step.
        batch_size: prompts that are sampled at once.

    Raises:
        ValueError: a field is out of its range, or per_step is above per_prompt.
    """

    per_prompt: int
    per_step: int
    batch_size: int

    def __post_init__(self):
        sizes = dict.fromkeys(("per_prompt", "batch_size"), checks.integer(1))
        checks.check_fields(self, **sizes)
        checks.check_fields(self, per_step=checks.integer(2, self.per_prompt))


@dataclasses.dataclass(frozen=True)
class OfflineValidation:
    """Configures validation on samples of other prompts.

    Attributes:
        period: steps between two validations; the last step of a run is validated too.
        examples: number of prompts, the first ones of the split `validation`.
        patience: validations without a lower loss until training stops early; None for no limit.

    Raises:
        ValueError: a field is out of its range.
    """

    period: int
    examples: int
    patience: int | None

    def __post_init__(self):
        sizes = dict.fromkeys(("period", "examples"), checks.integer(1))
        checks.check_fields(self, patience=checks.optional(checks.integer(1)), **sizes)


@dataclasses.dataclass(frozen=True)
class OfflineAlignment:
    """Configures an alignment by samples of the reference policy.

    Attributes:
        reference: the reference policy, from which training starts, as a loaded model or as a function
            that loads it.
        data: the training data, of which the documents are used, and the targets only by some rewards.
        objective: the objective to maximise.
        samples: how many samples are drawn and used.
        optimizer: the optimizer.
        steps: number of updates.
        seed: seed of the data order and of all sampling.
        validation: how often and on what to validate, and when to stop early.
        saving: how often a checkpoint is written.
        memory: reduces the memory of a step.

    Raises:
        ValueError: a field is out of its range, `data` has no split `validation`, the microbatches do
            not divide the batch, or the warm-up is longer than the run.
    """

    reference: LoadedModel | Callable[[], LoadedModel]
    data: TrainingData
    objective: AlignmentObjective
    samples: SampleSizes
    optimizer: Optimizer
    steps: int
    seed: int
    validation: OfflineValidation
    saving: Saving
    memory: Memory = dataclasses.field(default_factory=Memory)

    def __post_init__(self):
        checks.check_fields(
            self,
            reference=A_MODEL,
            data=DATA,
            objective=checks.instance(AlignmentObjective),
            samples=checks.instance(SampleSizes),
            optimizer=checks.instance(Optimizer),
            steps=checks.integer(1),
            seed=checks.SEED,
            validation=checks.instance(OfflineValidation),
            saving=checks.instance(Saving),
            memory=checks.instance(Memory),
        )
        self.memory.check_batch(self.data.batch_size)
        self.data.check("validation")
        self.optimizer.check_warmup("OfflineAlignment.steps", self.steps)

    def run(self, folder: Path) -> dict[str, float]:
        """Aligns in `folder`, or resumes there; see `align`."""
        return align(self, folder)


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Holds n prompts with K samples of each, by the names of _ARRAYS: tokens [n, K, T], others [n, K]."""

    prompts: Prompts
    arrays: Mapping[str, np.ndarray]

    def batch(self, rows: np.ndarray, chosen: np.ndarray) -> Batch:
        """Returns the prompts `rows` [B] with their samples `chosen` [B, K], see `LogVariance`."""
        picked = {name: x[rows[:, None], chosen] for name, x in self.arrays.items()}
        samples = Padded(picked.pop("tokens"), picked.pop("lengths"))
        prompts = trim_padding(jax.tree.map(lambda x: x[rows], self.prompts))
        return {"inputs": prompts, "samples": samples, **picked}

    def batches(self, batch_size: int, per_step: int, seed: int, start: int) -> Iterator[Batch]:
        """Yields the training batches from step `start` on, each a function of seed and step."""
        count, (_, drawn) = len(self.prompts.tokens), self.arrays["reward"].shape
        step = start
        while True:
            places = step * batch_size + np.arange(batch_size)
            orders = {e: _generator(seed, 0, e).permutation(count) for e in set(places // count)}
            rows = np.array([orders[i // count][i % count] for i in places])
            random = _generator(seed, 1, step).random((batch_size, drawn))
            yield self.batch(rows, np.argsort(random, axis=1)[:, :per_step])
            step += 1


def align(run: OfflineAlignment, folder: Path) -> dict[str, float]:
    """Draws the samples and trains in `folder`, or resumes there.

    Writes `samples` (arrays of the samples and rewards), `aligned` (the policy of the lowest validation
    loss), `checkpoints` (the last two train states), `metrics.jsonl` and TensorBoard events.

    Returns:
        `best_loss` and `best_step`.

    Raises:
        FloatingPointError: as `loop.run`.
        ValueError: the task has another vocabulary than the reference, or as in `RewardScorer`.
    """
    reference = with_data_vocabulary(ensure_loaded(run.reference), run.data)
    scorer = scorer_of(run.objective.reward, reference)
    data = run.data.encoded_by(reference.tokenizer)
    draw = functools.partial(_samples, run, reference, scorer, folder / SAMPLES)
    held_out = data.read("validation").at(slice(run.validation.examples))
    train, validation = draw("train", data.read(run.data.split)), draw("validation", held_out)

    model = reference.model
    state = new_state(shard_params(model, reference.trainable), run.optimizer)
    loss = LogVariance(run.memory.of(model), run.objective.beta, run.memory.chunk)
    step = partition(make_step(loss, run.optimizer, run.memory.microbatches), state, mesh_in_use())
    key, frozen = jax.random.key(run.seed), reference.frozen
    measure = jax.jit(loss)
    scores = lambda params, _: _scores(run, measure, with_base(params, frozen["base"]), validation)
    card = lambda state, found: _card(run, reference, int(state.step), found)
    tracked = loop.run(
        run.steps,
        run.saving,
        folder,
        state,
        batches=lambda at: train.batches(run.data.batch_size, run.samples.per_step, run.seed, at),
        update=lambda state, batch: step(state, frozen, batch, key),
        validating=loop.ValidationLoop(
            run.validation.period,
            run.validation.patience,
            scores=scores,
            keep=lambda state, found: reference.save(
                folder / MODEL, state.params, card(state, found)
            ),
        ),
        shown=("loss", "explained"),
    )
    return {"best_loss": float(tracked.best_loss), "best_step": int(tracked.best_step)}


def _samples(
    run: OfflineAlignment,
    reference: LoadedModel,
    scorer: RewardScorer,
    folder: Path,
    name: str,
    examples: Examples,
) -> SampleSet:
    """Draws and scores samples of all examples, or reads those that are in `folder` already."""
    folder.mkdir(parents=True, exist_ok=True)
    sampling, numbers = Sampling(run.objective.max_length), np.arange(run.samples.per_prompt)
    key, parts = jax.random.key(run.seed, impl="threefry2x32"), []
    batches = eval_batches(examples, run.samples.batch_size)
    count = -(-len(examples) // run.samples.batch_size)
    for i, batch in enumerate(
        ProgressBar(batches, total=count, desc=f"samples, {name}", unit="batch")
    ):
        path = folder / f"{name}_{i:05d}.npz"
        if not path.exists():
            keys = sequence_keys(key, batch["example_id"], numbers)
            drawn = sample(reference.model, reference.params, batch["inputs"], keys, sampling)
            outputs = drawn.tokens, drawn.lengths, drawn.finished
            rows = slice(i * run.samples.batch_size, None)
            texts = _padded_texts(examples.documents[rows], len(keys))
            rewards, _ = scorer(source_of(batch), texts, *outputs)
            log_prob = jnp.sum(drawn.scores.sampling_log_prob, axis=-1)
            found = dict(zip(_ARRAYS, (*outputs[:2], log_prob, rewards), strict=True))
            valid = {x: np.asarray(y)[batch["valid"]] for x, y in found.items()}
            temporary = path.with_suffix(".part")
            with temporary.open("wb") as file:
                np.savez(file, **valid)
            os.replace(temporary, path)
        with np.load(path) as stored:
            parts.append({x: stored[x] for x in _ARRAYS})
    joined = {x: np.concatenate([part[x] for part in parts]) for x in _ARRAYS}
    return SampleSet(examples.inputs, joined)


def _padded_texts(texts: list[str], size: int) -> list[str]:
    """Returns the first `size` texts; fewer are filled up with the last, as the batch's rows are."""
    return [*texts[:size], *texts[-1:] * (size - len(texts))]


def _scores(
    run: OfflineAlignment, measure: Callable, params: PyTree, samples: SampleSet
) -> dict[str, float]:
    """Returns loss and metrics of the policy on the first `per_step` samples of each prompt."""
    size, totals, weight = run.data.batch_size, {}, 0.0
    rows = np.arange(len(samples.prompts.tokens))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        part = np.pad(part, (0, size - len(part)), mode="edge") if len(part) < size else part
        chosen = np.tile(np.arange(run.samples.per_step), (size, 1))
        loss, metrics = measure(params, {}, samples.batch(part, chosen), None)
        count = min(size, len(rows) - start) / size
        for name, value in ({"loss": loss} | metrics).items():
            totals[name] = totals.get(name, 0.0) + count * float(value)
        weight += count * size * run.samples.per_step
    return {name: total / weight for name, total in totals.items()}


def _card(
    run: OfflineAlignment, reference: LoadedModel, step: int, scores: Mapping[str, float]
) -> dict[str, object]:
    objective = run.objective
    return {
        "data": run.data.described(),
        **objective.reward.described(),
        "beta": objective.beta,
        "max_length": objective.max_length,
        "samples": dataclasses.asdict(run.samples),
        "step": step,
        "steps": run.steps,
        "seed": run.seed,
        "validation": dict(scores),
        "from": reference.card,
    }


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(list(map(int, seeds))))
