"""A setup of models of no use, for methods whose answers and costs are to be seen."""

from pathlib import Path

from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.resources import RunResources
from dera_jax.evaluation.method_setup import MethodSetup
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.rewards.words import Faithfulness, WordsInRange
from tests.experiments import small

LENGTH = 8


def of_random_models(folder: Path) -> MethodSetup:
    """A pair, four documents, faithfulness as the reward, and a limit of words that is measured."""
    names = enumerate(("reference", "aligned"))
    folders = [small.reference_folder(folder / name, seed) for seed, name in names]
    pair = load(*folders)
    scorer = lambda reward: RewardScorer(
        reward, reward.load(RunResources(pair.vocabulary)), pair.decode
    )
    limit = Part("words", WordsInRange(high=3), 0.0)
    return MethodSetup(
        components=pair.components,
        tokenizer=pair.tokenizer,
        documents=small.DOCUMENTS.read(pair.tokenizer),
        scorer=scorer(Faithfulness()),
        measured=scorer(Combined((Part("guide", Faithfulness()), limit))),
        max_length=LENGTH,
        batch_size=3,
        seed=0,
    )
