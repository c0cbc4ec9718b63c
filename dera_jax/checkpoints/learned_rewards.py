"""Builds learned rewards from model folders, for gin files."""

import sys

from dera_jax.checkpoints.conversations import difference, tokenizer_of
from dera_jax.checkpoints.loading import read_config, value_head
from dera_jax.checkpoints.recognise import Checkpoint, open_checkpoint
from dera_jax.checkpoints.text_reward import TextRewardModel, TextScorer
from dera_jax.models.registry import model_of
from dera_jax.rewards.learned import Entailment, RewardModel


def reward_model(
    folder: str, policy: str | None = None, max_length: int = 4096
) -> RewardModel | TextRewardModel:
    """Returns the reward of a model of `training.preferences` or of a ...ForSequenceClassification.

    A reward model that can read the policy's ids runs in the compiled program. Otherwise it reads the
    text of documents and outputs with its own tokenizer and chat template, between compiled rounds.
    Which of both holds, and why, is printed to stderr.

    Args:
        folder: path or hub name of the reward model.
        policy: path or hub name of the model whose tokenizer the run has; None if it is not known
            yet, for a reward model that reads the policy's ids.
        max_length: maximum tokens of a document and its output, for a reward model that reads text.

    Raises:
        FileNotFoundError, ValueError: as in `loading.load`; or the model has no scalar head, or it
            would have to read text and has no tokenizer.
    """
    own = open_checkpoint(folder)
    model = value_head(own, folder)
    if policy is None:
        return RewardModel(model, folder)
    reason = _difference(own, open_checkpoint(policy))
    if not reason:
        print(
            f"{folder}: the reward model reads the ids of {policy} in the compiled program, since their "
            "tokenizers and chat templates agree",
            file=sys.stderr,
        )
        return RewardModel(model, folder)
    scorer = TextScorer(folder, max_length)
    tokenizer_of(own)
    print(
        f"{folder}: the reward model reads texts with its own tokenizer, between compiled rounds, since "
        f"{reason}",
        file=sys.stderr,
    )
    return TextRewardModel(scorer)


def _difference(own: Checkpoint, policy: Checkpoint) -> str:
    """Return why a reward model cannot read the policy's ids; "" if it can or this is not known yet."""
    ends = [model_of(x.config).ends_prompts for x in (own, policy)]
    if ends[0] != ends[1]:
        kinds = ["an encoder-decoder" if x else "decoder-only" for x in ends]
        return f"it is {kinds[0]}, and {policy.where} is {kinds[1]}"
    if own.vocabulary is None or policy.vocabulary is None:
        return ""  # checkpoints of T5X; the run compares its vocabulary when it loads the reward
    return difference(*map(tokenizer_of, (own, policy)), own.where, policy.where)


def entailment(folder: str, max_length: int, label: str = "entailment") -> Entailment:
    """Returns the reward of a text-to-text entailment model; see `rewards.learned.Entailment`.

    Args:
        folder: folder of the entailment model.
        max_length: maximum tokens of a prompt of the entailment model; longer documents are truncated.
        label: the output that means entailment.

    Raises:
        FileNotFoundError, ValueError: as in `loading.read_config`.
    """
    return Entailment(model_of(read_config(folder)), folder, max_length, label=label)
