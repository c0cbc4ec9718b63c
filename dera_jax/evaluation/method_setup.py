"""Holds what the methods of a comparison share: models, documents, rewards and prompt templates.

Axes: B documents of a batch.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.loading import realigned
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data.documents import Documents
from dera_jax.decoding.search import Guide
from dera_jax.files import fingerprints
from dera_jax.log import warn_once
from dera_jax.models.language_model import (
    LanguageModel,
    Prompts,
    PyTree,
    pad_sequences,
    trim_padding,
)
from dera_jax.prompts import KEYWORDS, Prompt, check_template
from dera_jax.rewards.scoring import RewardScorer


@dataclasses.dataclass(frozen=True)
class MethodSetup:
    """Holds the models, documents, rewards and limits that all methods of a comparison share.

    Attributes:
        components: the reference and, if there is one, the aligned model.
        tokenizer: the tokenizer of all models.
        documents: the documents that every method answers.
        scorer: the reward that guides searches and ranks samples.
        measured: a combined reward whose total and parts are recorded for every output.
        max_length: maximum number of output tokens, the end token included.
        batch_size: B.
        seed: seed of all PRNG keys.

    Raises:
        ValueError: max_length or batch_size is not a positive integer, or seed is no seed.
    """

    components: tuple[LoadedModel, ...]
    tokenizer: Tokenizer
    documents: Documents
    scorer: RewardScorer
    measured: RewardScorer
    max_length: int
    batch_size: int
    seed: int

    def __post_init__(self):
        sizes = dict.fromkeys(("max_length", "batch_size"), checks.integer(1))
        checks.check_fields(self, seed=checks.SEED, **sizes)

    @functools.cached_property
    def description(self) -> dict[str, object]:
        """Models, parameters, rewards, maximum length and seed as JSON; arrays by their hashes."""
        scorers, components = (self.scorer, self.measured), self.components
        params = tuple(x.params for x in components), [x.params for x in scorers]
        return {
            "models": fingerprints.describe(tuple(x.model for x in components)),
            "parameters": fingerprints.hash_arrays(params),
            "rewards": fingerprints.describe([x.reward for x in scorers]),
            "max_length": self.max_length,
            "seed": self.seed,
        }

    def at(self, lam: float) -> tuple[LanguageModel, PyTree]:
        """Returns model and parameters: a single model at λ = 0 and λ = 1, else the realigned pair.

        Raises:
            ValueError: λ is not 0 and there is no aligned model.
        """
        if lam and len(self.components) == 1:
            raise ValueError(
                f"λ = {lam:g} needs an aligned model, and none is given; give one, or set λ to 0"
            )
        if lam in (0.0, 1.0):
            component = self.components[int(lam)]
            return component.model, component.params
        return realigned(self.components)

    def prompts(self, template: str | None, rows: np.ndarray, lam: float) -> Prompts:
        """Returns the encoded prompts of the documents `rows` [B] at λ.

        A template has the slot {document} and may have {keywords}; None keeps each document's own
        template. A longer template makes the prompts longer, so that every document is truncated at
        the same token as without it.

        Raises:
            ValueError: as `check_prompt`.
        """
        if template is None:
            return self.documents.prompts_of(rows, self.lam((len(rows), 1), lam))
        check_prompt(template, self.documents.keywords is not None)
        prompts = [self.prompt(template, row) for row in range(len(self.documents.texts))]
        size = max(map(self._size, prompts))
        return self.encode([prompts[row] for row in rows], size, self.lam((len(rows), 1), lam))

    def lam(self, shape: tuple[int, ...], lam: float) -> np.ndarray | None:
        """Returns λ as a float32 array for the model of `at`; None if that is a single model."""
        return None if lam in (0.0, 1.0) else np.full(shape, lam, np.float32)

    def guide(self, rows: np.ndarray) -> Guide:
        """Returns the guiding reward with the documents `rows`; batch padding is not scored."""
        texts = [self.documents.texts[row] for row in np.unique(rows)]
        return Guide(self.scorer, self.documents.source(rows), texts)

    def prompt(self, template: str | None, row: int) -> Prompt:
        """Returns the prompt of the document `row` in a template; None keeps its own template."""
        prompt = self.documents.text_prompts[row]
        return prompt if template is None else dataclasses.replace(prompt, template=template)

    def encode(self, prompts: Sequence[Prompt], size: int, lam: np.ndarray | None) -> Prompts:
        """Encodes prompts in at most `size` tokens each.

        Documents are truncated at the same token as without the template; where the template leaves
        less room than that, they are truncated earlier, with a warning.
        """
        sizes = [self._size(prompt) for prompt in prompts]
        if max(sizes) > size:
            warn_once(
                f"an instruction and its document take more than the {size} tokens of a prompt; "
                "the document is truncated"
            )
        encoded = [
            self.tokenizer.encode_prompt(prompt, min(size, own_size)).ids
            for prompt, own_size in zip(prompts, sizes, strict=True)
        ]
        return trim_padding(Prompts(*pad_sequences(encoded, size), lam))

    def _size(self, prompt: Prompt) -> int:
        """Returns the prompt length that leaves the document the tokens of its own template."""
        limit = self.documents.prompts.tokens.shape[1]
        return limit + self._instruction(prompt) - self._own_instruction

    @functools.cached_property
    def _own_instruction(self) -> int:
        return min(map(self._instruction, self.documents.text_prompts))

    def _instruction(self, prompt: Prompt) -> int:
        """Returns the number of tokens of a prompt around its document."""
        return sum(len(self.tokenizer.encode(part)) for part in prompt.around)


def default_lam(aligned: str | None) -> float:
    """Returns the λ at which a single model decodes: the aligned model if there is one (1), else 0.

    Args:
        aligned: the folder of the aligned model; None for a reference alone.
    """
    return 0.0 if aligned is None else 1.0


def check_prompt(template: str | None, has_keywords: bool) -> None:
    """Raises ValueError unless the template has the slots of the task, {document} exactly once."""
    if template is None:
        return
    check_template(template, "the prompt")
    if KEYWORDS in template and not has_keywords:
        raise ValueError(
            f"the prompt {template!r} has the slot {KEYWORDS}, but the task has no keywords; "
            "remove the slot, or use a task with keywords"
        )
