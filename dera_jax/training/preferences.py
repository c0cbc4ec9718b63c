"""Training on comparisons: reward models, and DPO, which is the same loss on another score.

Of a document's two texts the chosen one is to have the higher score s (Bradley and Terry 1952):

    loss = −log σ(s(chosen) − s(rejected))

A reward model's score is a number from a model with a scalar head (`heads.value_of_sequences`; Stiennon
et al. 2020, arXiv 2009.01325, take the last state's). The score of direct preference optimization is
the reward for which the policy is the optimum (Rafailov et al. 2023, arXiv 2305.18290):

    s(y) = β·(log π(y | x) − log π_ref(y | x))

Axes: B documents, K texts of each (chosen, rejected), S input length, T text length.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from dera_jax import checks, json_files
from dera_jax.checkpoints.loading import load_params
from dera_jax.checkpoints.model_folder import restore_replaced, save_model
from dera_jax.checkpoints.orbax import Saving
from dera_jax.evaluation import reliability
from dera_jax.examples import Examples, eval_batches
from dera_jax.models.finite import check_values
from dera_jax.models.heads import ValueHead, value_of_sequences
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    PyTree,
    TrainableModel,
    check_padded,
    score_sequences,
)
from dera_jax.training import loop, supervised
from dera_jax.training.dry_run import Need, need, padded_shapes, prompt_shapes
from dera_jax.training.losses import bradley_terry
from dera_jax.training.optimizers import Optimizer
from dera_jax.training.supervised import BEST, DATA, TrainingData
from dera_jax.training.train_step import TrainState, initial_state


class Scorer(Protocol):
    """What gives texts a score to be trained. Frozen, hashable, holds no arrays."""

    def init(self, params: PyTree) -> PyTree:
        """The first parameters to train, from those of a language model."""

    def fixed(self, params: PyTree) -> PyTree:
        """What of the model's parameters the score needs as they were before training; None: nothing."""

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        """float32 [B, K] of texts[B, K, T]."""


@dataclasses.dataclass(frozen=True)
class ScalarHead:
    """A reward model's score; what is trained is a `ValueHead`."""

    model: ValueHead

    def init(self, params: PyTree) -> PyTree:
        return self.model.init(params)

    def fixed(self, params: PyTree) -> PyTree:
        return None

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        del fixed
        return value_of_sequences(self.model, params, prompts, texts, lengths)


@dataclasses.dataclass(frozen=True)
class LogRatio:
    """DPO's score, the reward that the policy is optimal for, up to a constant of the document.

    Raises:
        ValueError: β is not positive.
    """

    model: TrainableModel
    beta: float

    def __post_init__(self):
        beta = checks.check("DPO's beta", self.beta, checks.number(above=0))
        object.__setattr__(self, "beta", beta)

    def init(self, params: PyTree) -> PyTree:
        return params

    def fixed(self, params: PyTree) -> PyTree:
        return params

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        def log_prob(p: PyTree) -> Array:
            return jnp.sum(score_sequences(self.model, p, prompts, texts, lengths), axis=-1)

        return self.beta * (log_prob(params) - log_prob(jax.lax.stop_gradient(fixed)))


@dataclasses.dataclass(frozen=True)
class Start:
    """What is trained, and the model it starts from."""

    scorer: Scorer
    start: supervised.Start


def reward_model(start: supervised.Start) -> Start:
    """A scalar head, 0 at first, on the model of `start`. Dropout is not used."""
    return Start(ScalarHead(ValueHead(start.model)), start)


def dpo(start: supervised.Start, beta: float) -> Start:
    """The model of `start` as policy and as reference. Dropout is not used."""
    return Start(LogRatio(start.model, beta), start)


@dataclasses.dataclass(frozen=True)
class Validation:
    """How often and on what to validate.

    Attributes:
        period: steps between two validations; there is one after the last step too.
        examples: the first so many pairs of the split `validation`.
        patience: stop after so many validations without a better loss; None to go on.

    Raises:
        ValueError: a setting out of its range.
    """

    period: int
    examples: int = 1024
    patience: int | None = 3

    def __post_init__(self):
        sizes = dict.fromkeys(("period", "examples"), checks.whole(1))
        checks.check_fields(self, patience=checks.optional(checks.whole(1)), **sizes)


@dataclasses.dataclass(frozen=True)
class PreferenceTraining:
    """A run of training on pairs.

    Attributes:
        start: what to train (`reward_model`, `dpo`).
        data: a task of pairs (`tasks.preferences`) with the splits validation and test too.
        optimizer: how.
        steps: updates in all.
        seed: of the data's order.
        validation: how often, and when to stop early.
        saving: how often a checkpoint is written.

    Raises:
        ValueError: a setting out of its range, no task of pairs with these splits, or a warm-up
            that is longer than the run.
    """

    start: Start
    data: TrainingData
    optimizer: Optimizer
    steps: int
    seed: int
    validation: Validation
    saving: Saving

    def __post_init__(self):
        checks.check_fields(
            self,
            start=checks.instance(Start),
            data=DATA,
            optimizer=checks.instance(Optimizer),
            steps=checks.whole(1),
            seed=checks.SEED,
            validation=checks.instance(Validation),
            saving=checks.instance(Saving),
        )
        self.data.check("validation", "test", pairs=True)
        self.optimizer.check_warmup("PreferenceTraining.steps", self.steps)

    def run(self, folder: Path) -> dict[str, object]:
        """Trains, or goes on training, in `folder`; see `train`."""
        return train(self, folder)

    def needs(self) -> list[Need]:
        """What a step takes, from shapes alone."""
        model, task, scorer = self.start.start.model, self.data, self.start.scorer
        first_params = jax.eval_shape(model.init, jax.random.key(0))
        params, fixed = jax.eval_shape(scorer.init, first_params), scorer.fixed(first_params)
        state = jax.eval_shape(lambda p: initial_state(p, self.optimizer), params)
        texts = padded_shapes(task.batch_size, task.targets)
        batch = prompt_shapes(task.batch_size, task.inputs), texts, texts
        tokens = task.batch_size * (task.inputs + 2 * task.targets)
        name = f"step on pairs of {task.name} ({type(scorer).__name__})"
        update = make_step(scorer, self.optimizer)
        return [need(name, {"trained": params}, tokens, update, state, fixed, *batch)]


def train(training: PreferenceTraining, folder: Path) -> dict[str, object]:
    """Trains, or goes on training, in `folder`.

    Leaves there: `best` (the model of the lowest validation loss), `checkpoints`, `metrics.jsonl` and
    TensorBoard events; of the best model on the split `test` `test.json` and `calibration.png`.

    Returns:
        best_loss, best_step, `test`: see `reliability.summary`, and `left_out`: by split and reason
        the pairs that were not used, see `encoding`.

    Raises:
        FloatingPointError: as `loop.run`.
        ValueError: the task has no pairs, or another vocabulary than the model.
    """
    task, scorer, settings = training.data, training.start.scorer, training.validation
    task.check(pairs=True)
    origin = supervised.read_for_data(training.start.start, task)
    if isinstance(scorer, LogRatio):  # over the ids that the vocabulary has
        scorer = dataclasses.replace(scorer, model=origin.model)
    data = task.encoded_by(origin.tokenizer)
    held_out = data.read("validation").at(slice(settings.examples))
    test = data.read("test")  # now, lest it is missing after training
    fixed = jax.device_put(scorer.fixed(origin.params))
    improve = make_step(scorer, training.optimizer)
    scores_of = functools.partial(margins, scorer, fixed=fixed, batch_size=task.batch_size)

    def keep(state: TrainState, scores: Mapping[str, float]) -> None:
        card = _card(training, int(state.step), scores, origin.card, data.left_out())
        save_model(folder / BEST, origin.model.config, origin.vocabulary, state.params, card)

    restore_replaced(folder / BEST)
    state = loop.run(
        loop.Schedule(training.steps, settings.period, settings.patience, training.saving),
        folder,
        initial_state(scorer.init(origin.params), training.optimizer),
        batches=lambda step: data.batches(training.seed, step),
        update=lambda state, batch: improve(
            state, fixed, batch["inputs"], batch["targets"], batch["rejected"]
        ),
        validate=lambda params, step: reliability.scores(scores_of(params, held_out)),
        keep=keep,
    )
    init = lambda key: scorer.init(origin.model.init(key))
    best = load_params(folder / BEST, init, origin.vocabulary, task.name)
    report = reliability.summary(scores_of(best, test), test.notes)
    json_files.write(folder / "test.json", report)
    reliability.plot(report, folder / "calibration.png")
    print(reliability.sentence(report))
    return {
        "best_loss": float(state.best_loss),
        "best_step": int(state.best_step),
        "test": {name: x for name, x in report.items() if name != "bins"},
        "left_out": data.left_out(),
    }


def make_step(scorer: Scorer, optimizer: Optimizer) -> Callable:
    """Compiles (state, fixed, prompts, chosen, rejected) -> (state, metrics).

    `state` is donated. Metrics: loss, accuracy (ties are half right), grad_norm (before clipping), learning_rate, tokens.
    """

    def loss_of(params: PyTree, fixed: PyTree, *batch):
        margin = margin_of(scorer, params, fixed, *batch)
        tied = jnp.abs(margin) < reliability.TIE
        return jnp.mean(bradley_terry(margin)), jnp.mean(jnp.where(tied, 0.5, margin > 0))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, fixed: PyTree, prompts: Prompts, chosen: Padded, rejected: Padded):
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, accuracy), grads = differentiate(state.params, fixed, prompts, chosen, rejected)
        updates, opt_state = optimizer.transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(optimizer.learning_rate(state.step), jnp.float32),
            "tokens": sum(jnp.sum(x.lengths) for x in (prompts, chosen, rejected)),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def margin_of(
    scorer: Scorer,
    params: PyTree,
    fixed: PyTree,
    prompts: Prompts,
    chosen: Padded,
    rejected: Padded,
) -> Array:
    """s(chosen) − s(rejected), float32 [B].

    Raises:
        ValueError: prompts or sequences of another type or shape than [B, S], [B, T], [B, T].
    """
    batch, _ = check_padded("prompts", prompts, B=None, S=None)
    _, size = check_padded("chosen", chosen, B=batch, T=None)
    check_padded("rejected", rejected, B=batch, T=size)
    texts = jax.tree.map(lambda *x: jnp.stack(x, axis=1), chosen, rejected)
    scores = scorer.scores(params, fixed, prompts, texts.tokens, texts.lengths)
    return scores[:, 0] - scores[:, 1]


_margin_of = jax.jit(margin_of, static_argnums=0)


def margins(
    scorer: Scorer, params: PyTree, examples: Examples, fixed: PyTree, batch_size: int
) -> np.ndarray:
    """s(chosen) − s(rejected) of all examples, float32 [n].

    Raises:
        FloatingPointError: that of a pair is not finite.
    """
    parts = [
        _margin_of(scorer, params, fixed, batch["inputs"], batch["targets"], batch["rejected"])
        for batch in eval_batches(examples, batch_size)
    ]
    found = np.concatenate(parts)[: len(examples)]
    check_values({"score's margin": found}, ("pair",))
    return found


def _card(
    training: PreferenceTraining, step: int, scores: Mapping, start: dict, left_out: dict
) -> dict:
    scorer = training.start.scorer
    return {
        "data": training.data.described(),
        "score": type(scorer).__name__,
        **({"beta": scorer.beta} if isinstance(scorer, LogRatio) else {}),
        "step": step,
        "steps": training.steps,
        "seed": training.seed,
        "validation": dict(scores),
        "left_out": left_out,
        "from": start,
    }
