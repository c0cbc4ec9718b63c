"""What the methods of a comparison share: models, documents, rewards, and prompts in a template.

Axes: B documents at once.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from dera_jax import checks, fingerprints
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.search import Guide
from dera_jax.evaluation.sweep import Documents
from dera_jax.log import warn_once
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree, narrowed, padded
from dera_jax.prompts import KEYWORDS, Prompt, check_template
from dera_jax.rewards.judge import Judge


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the methods of a comparison share.

    Attributes:
        models: a reference, and an aligned model if there is one.
        params: of each.
        tokenizer: theirs.
        documents: to answer.
        judge: the reward that guides.
        measured: a sum whose parts are measured on every answer.
        max_length: T.
        batch_size: B.
        seed: of all draws.
    """

    models: tuple[LanguageModel, ...]
    params: tuple[PyTree, ...]
    tokenizer: Tokenizer
    documents: Documents
    judge: Judge
    measured: Judge
    max_length: int
    batch_size: int
    seed: int

    def __post_init__(self):
        sizes = dict.fromkeys(("max_length", "batch_size"), checks.whole(1))
        checks.check_fields(self, seed=checks.SEED, **sizes)

    @functools.cached_property
    def description(self) -> dict[str, object]:
        """Everything above but the documents, as JSON, see `fingerprints`; arrays by their hashes."""
        judges = self.judge, self.measured
        return {
            "models": fingerprints.describe(self.models),
            "parameters": fingerprints.of_arrays((self.params, [x.params for x in judges])),
            "rewards": fingerprints.describe([x.reward for x in judges]),
            "max_length": self.max_length,
            "seed": self.seed,
        }

    def at(self, lam: float) -> tuple[LanguageModel, PyTree]:
        """The model at λ, and its parameters.

        Raises:
            ValueError: λ is not 0, and there is no aligned model.
        """
        if lam and len(self.models) == 1:
            raise ValueError(f"λ = {lam:g} needs an aligned model, and none is given")
        if lam in (0.0, 1.0):
            return self.models[int(lam)], self.params[int(lam)]
        return Realigned(self.models[0], self.models[1:]), self.params

    def prompts(self, template: str | None, rows: np.ndarray, lam: float) -> Prompts:
        """The documents `rows` in a template with the slots {document} and {keywords}, at λ.

        Without a template, each in its own. A longer one makes prompts longer; documents are cut
        where they are cut without it.

        Raises:
            ValueError: as `check_prompt`.
        """
        if template is None:
            return self.documents.prompts_of(rows, self.lam((len(rows), 1), lam))
        check_prompt(template, self.documents.keywords is not None)
        texts = [self.prompt(template, row) for row in range(len(self.documents.texts))]
        size = max(map(self._size, texts))
        return self.encode([texts[row] for row in rows], size, self.lam((len(rows), 1), lam))

    def lam(self, shape: tuple[int, ...], lam: float) -> np.ndarray | None:
        """An array of λ for the model of `at`: None for a single one."""
        return None if lam in (0.0, 1.0) else np.full(shape, lam, np.float32)

    def guide(self, rows: np.ndarray) -> Guide:
        """The reward for the documents `rows`; those that only fill the batch are not scored."""
        texts = [self.documents.texts[row] for row in np.unique(rows)]
        return Guide(self.judge, self.documents.source(rows), texts)

    def prompt(self, template: str | None, row: int) -> Prompt:
        """The document `row` in a template."""
        asked = self.documents.asked[row]
        return asked if template is None else dataclasses.replace(asked, template=template)

    def encode(self, prompts: Sequence[Prompt], size: int, lam: np.ndarray | None) -> Prompts:
        """Prompts of at most `size` tokens whose documents are cut where they are without the template.

        Or before, where the template needs more room than there is, which is said.
        """
        sizes = [self._size(prompt) for prompt in prompts]
        if max(sizes) > size:
            warn_once(
                f"an instruction takes more tokens than the {size} of a prompt leave beside its "
                "document, which is cut"
            )
        encoded = [
            self.tokenizer.encode_prompt(prompt, min(size, wanted)).ids
            for prompt, wanted in zip(prompts, sizes, strict=True)
        ]
        return narrowed(Prompts(*padded(encoded, size), lam))

    def _size(self, prompt: Prompt) -> int:
        """Tokens of a prompt that leave a document the room that it has in its own."""
        limit = self.documents.prompts.tokens.shape[1]
        return limit + self._instruction(prompt) - self._own_instruction

    @functools.cached_property
    def _own_instruction(self) -> int:
        return min(map(self._instruction, self.documents.asked))

    def _instruction(self, prompt: Prompt) -> int:
        """Tokens of a prompt around its document."""
        return sum(len(self.tokenizer.encode(part)) for part in prompt.around)


def check_prompt(template: str | None, has_keywords: bool) -> None:
    """Raises ValueError: no slot for the text, or one for keywords that the task does not have."""
    if template is None:
        return
    check_template(template, "the prompt")
    if KEYWORDS in template and not has_keywords:
        raise ValueError(f"the prompt {template!r} has a slot {KEYWORDS}, the task no keywords")
