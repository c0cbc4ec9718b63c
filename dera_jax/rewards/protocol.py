"""What a reward is: a function of token ids, called inside the compiled program.

Axes: B inputs, K hypotheses of each input, S input length, T output length.
"""

from typing import Protocol

from jax import Array

from dera_jax.models.language_model import PyTree


class Reward(Protocol):
    """Scores whole texts, higher is better. Implementations are frozen, hashable, hold no arrays.

    `min_limit` is the smallest length limit of a decode, in tokens with the end token, under which
    the reward means what it says; 1 if any does.
    """

    min_limit: int

    def __call__(
        self, params: PyTree, inputs: Array, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """The reward of each hypothesis, float32 [B, K].

        Args:
            params: the reward's own parameters; None if it has none.
            inputs: int32 [B, S], 0 is padding.
            tokens: int32 [B, K, T], 0 after each row's length.
            lengths: int32 [B, K], the end token included: the text has lengths - finished tokens.
            finished: bool [B, K]; False where the length limit cut the text off.
        """


def check_limit(reward: Reward, max_length: int) -> None:
    """Refuses a length limit under which `reward` cannot be earned as meant.

    Raises:
        ValueError: max_length is below the reward's `min_limit`.
    """
    if max_length < reward.min_limit:
        raise ValueError(
            f"max_length must be at least {reward.min_limit} for the reward {reward}; found "
            f"{max_length}. Raise max_length, or change the reward."
        )
