"""Any Python function of texts as a reward.

It is called between compiled rounds, once per round with all texts of this process, and never from
inside a compiled program.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dera_jax import checks
from dera_jax.rewards.protocol import Reward


@dataclasses.dataclass(frozen=True, repr=False)
class HostReward(Reward):
    """fn(documents, texts) -> one float for each text.

    `documents` and `texts` are equally long lists: a document stands there once for each of its
    texts. It is the task's whole text, the instruction included and nothing cut off. A text may be
    empty.
    """

    fn: Callable[[Sequence[str], Sequence[str]], Sequence[float]]

    def __post_init__(self):
        checks.check_fields(self, fn=checks.FUNCTION)

    @property
    def on_host(self) -> bool:
        return True

    def __call__(self, params, source, tokens, lengths, finished):
        raise TypeError(
            f"the host reward {self._name} cannot be called inside a compiled program; score texts "
            "between its rounds, with rewards.judge.Judge"
        )

    def score(self, documents: Sequence[str] | None, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """float32 [B, K] of the K texts of each of B documents, in one call of the function.

        Without documents, as on a process whose prompts all only fill the batch, there is no call.

        Raises:
            ValueError: no documents, or not one finite number for each text. What the function
                raises is passed on.
        """
        if documents is None:
            raise ValueError(f"the host reward {self._name} needs the documents' texts")
        repeated = [document for document, row in zip(documents, texts, strict=True) for _ in row]
        flat = [text for row in texts for text in row]
        values = self._floats(self.fn(repeated, flat) if flat else [])
        if values.shape != (len(flat),):
            raise ValueError(
                f"the host reward {self._name} returned values of shape {values.shape} for "
                f"{len(flat)} texts; expected one float for each text"
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"the host reward {self._name} returned {values[bad[0]]} for the text "
                f"{flat[bad[0]]!r}; rewards must be finite"
            )
        return values.reshape(len(texts), len(texts[0]) if flat else 0)

    def _floats(self, values: object) -> np.ndarray:
        try:
            return np.asarray(list(values), np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the host reward {self._name} must return one float for each text; found {values!r}"
            ) from error

    def __repr__(self) -> str:
        return f"HostReward({self._name})"

    @property
    def _name(self) -> str:
        return getattr(self.fn, "__qualname__", repr(self.fn))
