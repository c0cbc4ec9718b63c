"""Validation of a text-to-text model: loss, ROUGE of greedy decodes, and some of these to read.

Axes: n examples, B examples of a batch, T target length.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation import metrics
from dera_jax.examples import Examples, spread_batches
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    PyTree,
    TrainableModel,
    sequence_keys,
)
from dera_jax.partitioning import once, to_host
from dera_jax.store import write_file
from dera_jax.training.losses import cross_entropy, per_token

_PREFIX = re.compile(r"(\w+):")
_SMALLEST_SHARE = 0.02  # of the tokens; below it a prefix is no objective but chance


@dataclasses.dataclass(frozen=True)
class Validation:
    """How often and on what to validate.

    Attributes:
        period: steps between two validations; there is one after the last step too.
        examples: the first so many of the split `validation`.
        decoded: the first so many are decoded and scored by ROUGE.
        shown: the first so many of these are written out.
        patience: stop after so many validations without a better loss; None to go on.

    Raises:
        ValueError: a setting out of its range.
    """

    period: int
    examples: int = 1024
    decoded: int = 0
    shown: int = 10
    patience: int | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            period=checks.whole(1),
            examples=checks.whole(1),
            decoded=checks.whole(0),
            shown=checks.whole(0),
            patience=checks.optional(checks.whole(1)),
        )


@dataclasses.dataclass(frozen=True)
class Validator:
    """Scores parameters of `model` on fixed examples."""

    model: TrainableModel
    examples: Examples
    decode: Callable[[Sequence[int]], str]
    batch_size: int
    settings: Validation
    chunk: int | None = None

    def __call__(self, params: PyTree, samples: Path) -> dict[str, float]:
        """Losses and ROUGE; decoded text goes to the file `samples`."""
        scores = losses(self.model, params, self.examples, self.batch_size, self.chunk)
        if self.settings.decoded:
            decoded = self.examples.at(slice(self.settings.decoded))
            greedy = greedy_tokens(self.model, params, decoded, self.batch_size)
            texts = [self.decode(ids) for ids in greedy]
            rouge = metrics.rouge(decoded.summaries, texts)
            scores |= {name: float(np.mean(values)) for name, values in rouge.items()}
            shown = decoded.at(slice(self.settings.shown))
            once(lambda: write_samples(samples, shown, texts))
        return scores


@functools.partial(jax.jit, static_argnums=(0, 4))
def token_losses(
    model: TrainableModel,
    params: PyTree,
    prompts: Prompts,
    targets: Padded,
    chunk: int | None = None,
) -> Array:
    """Plain cross-entropy in nats, float32 [B, T], of targets [B, T]; 0 at padding."""
    measure = lambda logits, tokens: cross_entropy(logits, tokens, 0.0, 0.0)
    hidden = model.hidden(params, prompts, targets.tokens[:, None, :-1])
    found = per_token(model, params, hidden, targets.tokens[:, None], measure, chunk)
    return found[:, 0] * targets.mask


def losses(
    model: TrainableModel,
    params: PyTree,
    examples: Examples,
    batch_size: int,
    chunk: int | None = None,
) -> dict[str, float]:
    """Mean loss per target token, of all examples and of those under each prefix ("copy: ...").

    Raises:
        FloatingPointError: the loss of an example is not finite.
    """
    sums = [
        np.sum(to_host(token_losses(model, params, x["inputs"], x["targets"], chunk)), axis=-1)
        for x in spread_batches(examples, batch_size)
    ]
    sums = np.concatenate(sums)[: len(examples)].astype(np.float64)
    check_values({"validation loss": sums}, ("example",))
    tokens = examples.targets.lengths
    rows_of = collections.defaultdict(list)
    for row, document in enumerate(examples.documents):
        prefix = _PREFIX.match(document)
        rows_of[prefix[1] if prefix else "no_prefix"].append(row)
    result = {"loss": float(sums.sum() / tokens.sum())}
    for prefix, rows in sorted(rows_of.items()):
        if len(rows_of) > 1 and tokens[rows].sum() >= _SMALLEST_SHARE * tokens.sum():
            result[f"loss_{prefix}"] = float(sums[rows].sum() / tokens[rows].sum())
    return result


def greedy_tokens(
    model: TrainableModel, params: PyTree, examples: Examples, batch_size: int
) -> list[list[int]]:
    """The model's greedy completions of n examples, not longer than the longest target may be."""
    sampling = Sampling(max_length=examples.targets.tokens.shape[1], greedy=True)
    found = []
    for batch in spread_batches(examples, batch_size):
        keys = sequence_keys(0, batch["example_id"], [0])  # greedy decoding draws nothing
        out = sample(model, params, batch["inputs"], keys, sampling)
        tokens, lengths = to_host((out.tokens[:, 0], out.lengths[:, 0]))
        found += [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
    return found[: len(examples)]


def write_samples(path: Path, examples: Examples, texts: list[str]) -> None:
    """One paragraph per example: document, reference, decoded text."""
    rows = zip(examples.documents, examples.summaries, texts, strict=False)
    paragraphs = [f"document:  {d}\nreference: {s}\ndecoded:   {t}\n" for d, s, t in rows]
    write_file(path, "\n".join(paragraphs).encode())
