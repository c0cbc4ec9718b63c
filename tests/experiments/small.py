"""A model of no use and a PPO run of two steps, for experiments whose stages are to be seen."""

from pathlib import Path
from types import SimpleNamespace

import jax

from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.orbax import Saving
from dera_jax.data.splits import Split
from dera_jax.data.task_data import TaskData
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.tasks import newswire
from dera_jax.training import optimizers, ppo
from dera_jax.training.ppo_training import PPOTraining

CONFIG = T5Config(1024, 16, 2, 1, 1, 8, 32, ("relu",), True)
DOCUMENTS = Split("newswire", "test", inputs=16, documents=4)
NEVER_SAVED = Saving(steps=100, minutes=1e9)


def reference_folder(folder: Path, seed: int = 0) -> str:
    params = T5(CONFIG).init(jax.random.key(seed))
    save_model(folder, CONFIG, newswire.vocabulary(), params, {})
    return str(folder)


def adamw(peak: float) -> optimizers.Optimizer:
    return optimizers.adamw(optimizers.constant(peak, 2), 1.0, weight_decay=0.0)


def align(reference, objective, seed) -> PPOTraining:
    return PPOTraining(
        reference,
        TaskData("newswire", inputs=16, targets=16, batch_size=4),
        objective,
        ppo.Updates(rollouts=2, epochs=1, minibatches=1),
        ppo.Optimizers(adamw(1e-2), adamw(2e-2)),
        steps=2,
        seed=seed,
        saving=NEVER_SAVED,
    )


def only_trace(monkeypatch) -> None:
    """Makes a dry run trace its programs, which finds shapes that do not fit, and compile none."""
    kinds = ("alias", "argument", "output", "temp")
    memory = SimpleNamespace(**{f"{kind}_size_in_bytes": 0 for kind in kinds})
    program = SimpleNamespace(memory_analysis=lambda: memory)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: program)
