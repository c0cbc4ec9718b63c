"""Weighted sums of rewards, with named parts.

    r = Σ_i weight_i·(r_i − mean_i)/std_i

Mean and standard deviation are 0 and 1 unless statistics are given, which a calibration pass
(`evaluation.statistics`) takes once over texts of the reference. They never move while a policy
is trained or a search runs: what a text is worth must not depend on when it was written.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import PyTree
from dera_jax.rewards.protocol import REWARD, Resources, Reward, Source, rewards_of


@dataclasses.dataclass(frozen=True)
class Part:
    """One term: its name in logs and tables, its reward, and its weight."""

    name: str
    reward: Reward
    weight: float = 1.0

    def __post_init__(self):
        checks.check_fields(self, name=checks.TEXT, reward=REWARD, weight=checks.number())


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of the part of this name."""

    name: str
    mean: float
    std: float

    def __post_init__(self):
        amount = checks.number()
        checks.check_fields(self, name=checks.TEXT, mean=amount, std=checks.number(least=0))


@dataclasses.dataclass(frozen=True)
class Combined(Reward):
    """The weighted sum of its parts; with statistics, of the standardised parts.

    Raises:
        ValueError: no part, two parts of one name, or statistics that are not those of the parts.
    """

    terms: tuple[Part, ...]
    statistics: tuple[Statistics, ...] | None = None

    def __post_init__(self):
        statistics = checks.several(
            checks.instance(Statistics), "(Statistics('length', 0.0, 1.0),)"
        )
        parts = checks.several(checks.instance(Part), "(Part('length', LengthInRange()),)", least=0)
        checks.check_fields(self, terms=parts, statistics=checks.optional(statistics))
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Combined.terms must have names of their own; found {names}")
        if self.statistics is None:
            return
        if sorted(names) != sorted(x.name for x in self.statistics):
            raise ValueError(
                f"Combined has the parts {sorted(names)}, the statistics are those of "
                f"{sorted(x.name for x in self.statistics)}; calibrate again"
            )
        flat = [x.name for x in self.statistics if x.std == 0]
        if flat:
            raise ValueError(f"Combined: {flat} did not vary in the calibration, so has no scale")

    @property
    def min_limit(self) -> int:
        return max(term.reward.min_limit for term in self.terms)

    @property
    def highest(self) -> float | None:
        """`total` of the parts' highest values, up to rounding; parts of weight 0 do not count.

        None if one of the others has no bound or a negative weight.
        """
        best = {x.name: x.reward.highest if x.weight else 0.0 for x in self.terms}
        if None in best.values() or any(x.weight < 0 for x in self.terms):
            return None
        return float(self.total(best))

    @property
    def on_host(self) -> bool:
        return any(term.reward.on_host for term in self.terms)

    @property
    def about_keywords(self) -> bool:
        return any(term.reward.about_keywords for term in self.terms)

    def positions(self, inputs: int, rows: int, tokens: int) -> int:
        """The sum over its parts; those of weight 0 are computed too."""
        return sum(term.reward.positions(inputs, rows, tokens) for term in self.terms)

    def check_documents(self, documents: Sequence[str]) -> None:
        for term in self.terms:
            term.reward.check_documents(documents)

    def load(self, resources: Resources) -> PyTree:
        return tuple(term.reward.load(resources) for term in self.terms)

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        return self.total(self.parts(params, source, tokens, lengths, finished))

    def parts(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Mapping[str, Array]:
        """The rewards of the parts, as they are: neither standardised nor weighted."""
        return {
            term.name: rewards_of(term.reward, part, source, tokens, lengths, finished)
            for term, part in zip(self.terms, params, strict=True)
        }

    def total(self, parts: Mapping[str, Array]) -> Array:
        """The reward [B, K] of parts [B, K]."""
        scale = {x.name: (x.mean, x.std) for x in self.statistics or ()}
        total = 0.0
        for term in self.terms:
            mean, std = scale.get(term.name, (0.0, 1.0))
            total = total + term.weight * (parts[term.name] - mean) / std
        return total
