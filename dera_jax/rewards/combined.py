"""Combines rewards into a weighted sum with named parts.

    r = Σ_i weight_i·(r_i − mean_i)/std_i

Mean and standard deviation are 0 and 1 unless statistics are given, which a calibration pass
(`evaluation.reward_statistics`) estimates once on samples of the reference policy. They stay fixed
during training and search, so that the reward of an output does not depend on the step.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import PyTree
from dera_jax.rewards.protocol import REWARD, Resources, Reward, Source, call_reward


@dataclasses.dataclass(frozen=True)
class Part:
    """Defines one term of the sum.

    Attributes:
        name: name of the part in logs and tables.
        reward: reward function of the part.
        weight: factor of the reward in the sum.

    Raises:
        ValueError: a field has a wrong type or is out of its range.
    """

    name: str
    reward: Reward
    weight: float = 1.0

    def __post_init__(self):
        checks.check_fields(self, name=checks.TEXT, reward=REWARD, weight=checks.number())


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Holds the mean and the standard deviation of the part of this name."""

    name: str
    mean: float
    std: float

    def __post_init__(self):
        amount = checks.number()
        checks.check_fields(self, name=checks.TEXT, mean=amount, std=checks.number(least=0))


@dataclasses.dataclass(frozen=True)
class Combined(Reward):
    """Computes the weighted sum of its parts, which are standardised if statistics are given.

    A sum has the `text_metrics` of its parts, and no `metrics`.

    Attributes:
        terms: the parts, with distinct names.
        statistics: mean and standard deviation of each part by its name, to standardise the parts
            by; None not to.

    Raises:
        ValueError: there is no part, two parts have one name, the statistics do not have the names
            of the parts, or a standard deviation is 0.
    """

    terms: tuple[Part, ...]
    statistics: tuple[Statistics, ...] | None = None

    def __post_init__(self):
        statistics = checks.sequence(
            checks.instance(Statistics), "(Statistics('length', 0.0, 1.0),)"
        )
        parts = checks.sequence(
            checks.instance(Part), "(Part('length', LengthInRange()),)", least=0
        )
        checks.check_fields(self, terms=parts, statistics=checks.optional(statistics))
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"Combined.terms must be one or more parts with distinct names; found {names}"
            )
        if self.statistics is None:
            return
        if sorted(names) != sorted(x.name for x in self.statistics):
            raise ValueError(
                f"Combined.terms are {sorted(names)}, but Combined.statistics are those of "
                f"{sorted(x.name for x in self.statistics)}; run the calibration pass "
                "(gin_configs/runs/statistics.gin) again for these terms"
            )
        constant = [x.name for x in self.statistics if x.std == 0]
        if constant:
            raise ValueError(
                f"Combined.statistics: {constant} did not vary in the calibration pass (std is 0) "
                "and cannot be standardised; remove these terms, or calibrate on more samples"
            )

    @property
    def summands(self) -> tuple[Part, ...]:
        return self.terms

    @property
    def min_limit(self) -> int:
        return max(term.reward.min_limit for term in self.terms)

    @property
    def highest(self) -> float | None:
        """The `total` of the parts' upper bounds, up to rounding; parts of weight 0 do not count.

        None if another part has no known bound, or if a weight is negative.
        """
        bounds = {x.name: x.reward.highest if x.weight else 0.0 for x in self.terms}
        if None in bounds.values() or any(x.weight < 0 for x in self.terms):
            return None
        return float(self.total(bounds))

    @property
    def on_host(self) -> bool:
        return any(term.reward.on_host for term in self.terms)

    @property
    def about_keywords(self) -> bool:
        return any(term.reward.about_keywords for term in self.terms)

    def forward_tokens(self, inputs: int, rows: int, tokens: int) -> int:
        """Returns the sum over all parts; parts of weight 0 are computed too."""
        return sum(term.reward.forward_tokens(inputs, rows, tokens) for term in self.terms)

    def check_documents(self, documents: Sequence[str]) -> None:
        for term in self.terms:
            term.reward.check_documents(documents)

    def text_metrics(self, text: str, finished: bool) -> dict[str, bool]:
        """Returns the metrics of all parts; a name of several parts is True if all are True."""
        metrics = {}
        for term in self.terms:
            for name, value in term.reward.text_metrics(text, finished).items():
                metrics[name] = metrics.get(name, True) and value
        return metrics

    def load(self, resources: Resources) -> PyTree:
        return tuple(term.reward.load(resources) for term in self.terms)

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        return self.total(self.parts(params, source, tokens, lengths, finished))

    def parts(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Mapping[str, Array]:
        """Returns the rewards of the parts, neither standardised nor weighted."""
        return {
            term.name: call_reward(term.reward, part_params, source, tokens, lengths, finished)
            for term, part_params in zip(self.terms, params, strict=True)
        }

    def total(self, parts: Mapping[str, Array]) -> Array:
        """Returns the reward [B, K] that the rewards of the parts, each [B, K], add up to."""
        moments = {x.name: (x.mean, x.std) for x in self.statistics or ()}
        total = 0.0
        for term in self.terms:
            mean, std = moments.get(term.name, (0.0, 1.0))
            total = total + term.weight * (parts[term.name] - mean) / std
        return total
