"""Validates a text-to-text model by its loss and ROUGE of greedy outputs, and writes examples.

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
from dera_jax.data.examples import Examples, spread_batches
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.files.store import write_file
from dera_jax.metrics.rouge import rouge
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    PyTree,
    TrainableModel,
    sequence_keys,
)
from dera_jax.partitioning import to_host, write_once
from dera_jax.training.losses import cross_entropy, per_token

_PREFIX = re.compile(r"(\w+):")
_MIN_FRACTION = 0.02  # of the target tokens; a rarer prefix is text of a document, not of a task


@dataclasses.dataclass(frozen=True)
class Validation:
    """Configures how often and on what to validate.

    Attributes:
        period: steps between two validations; the last step of a run is validated too.
        examples: number of examples for the loss, the first ones of the split `validation`.
        decoded: number of these examples, from the first, that are decoded and scored by ROUGE.
        shown: number of the decoded examples, from the first, that are written to a file.
        patience: validations without a lower loss until training stops early; None for no limit.

    Raises:
        ValueError: a field is out of its range.
    """

    period: int
    examples: int
    decoded: int = 0
    shown: int = 10
    patience: int | None = None

    def __post_init__(self):
        checks.check_fields(
            self,
            period=checks.integer(1),
            examples=checks.integer(1),
            decoded=checks.integer(0),
            shown=checks.integer(0),
            patience=checks.optional(checks.integer(1)),
        )


@dataclasses.dataclass(frozen=True)
class Validator:
    """Scores parameters of `model` on fixed examples; `decode` converts token ids to text."""

    model: TrainableModel
    examples: Examples
    decode: Callable[[Sequence[int]], str]
    batch_size: int
    settings: Validation
    chunk: int | None = None

    def __call__(self, params: PyTree, samples: Path) -> dict[str, float]:
        """Returns losses and mean ROUGE by name; writes decoded outputs to the file `samples`."""
        scores = losses(self.model, params, self.examples, self.batch_size, self.chunk)
        if self.settings.decoded:
            decoded = self.examples.at(slice(self.settings.decoded))
            greedy = greedy_tokens(self.model, params, decoded, self.batch_size)
            outputs = [self.decode(ids) for ids in greedy]
            rouge_scores = rouge(decoded.summaries, outputs)
            scores |= {name: float(np.mean(values)) for name, values in rouge_scores.items()}
            shown = decoded.at(slice(self.settings.shown))
            write_once(lambda: write_samples(samples, shown, outputs))
        return scores


@functools.partial(jax.jit, static_argnums=(0, 4))
def token_losses(
    model: TrainableModel,
    params: PyTree,
    prompts: Prompts,
    targets: Padded,
    chunk: int | None = None,
) -> Array:
    """Returns the plain cross-entropy of targets[B, T] in nats, float32 [B, T]; 0 at padding."""
    measure = lambda logits, tokens: cross_entropy(logits, tokens, 0.0, 0.0)
    hidden = model.hidden(params, prompts, targets.tokens[:, None, :-1])
    token_loss = per_token(model, params, hidden, targets.tokens[:, None], measure, chunk)
    return token_loss[:, 0] * targets.mask


def losses(
    model: TrainableModel,
    params: PyTree,
    examples: Examples,
    batch_size: int,
    chunk: int | None = None,
) -> dict[str, float]:
    """Returns the mean loss per target token in nats, over all examples and for each task prefix.

    The prefix of a document is its first word if a colon follows, such as "copy:", and
    `no_prefix` otherwise. If the examples have several prefixes, each one with at least 2 % of the
    target tokens adds `loss_<prefix>`.

    Raises:
        FloatingPointError: the loss of an example is not finite; the message names the example.
    """
    sums = [
        np.sum(to_host(token_losses(model, params, x["inputs"], x["targets"], chunk)), axis=-1)
        for x in spread_batches(examples, batch_size)
    ]
    sums = np.concatenate(sums)[: len(examples)].astype(np.float64)
    check_values({"validation loss": sums}, ("example",))
    tokens = examples.targets.lengths
    indices_by_prefix = collections.defaultdict(list)
    for i, document in enumerate(examples.documents):
        prefix = _PREFIX.match(document)
        indices_by_prefix[prefix[1] if prefix else "no_prefix"].append(i)
    result = {"loss": float(sums.sum() / tokens.sum())}
    for prefix, indices in sorted(indices_by_prefix.items()):
        if len(indices_by_prefix) > 1 and tokens[indices].sum() >= _MIN_FRACTION * tokens.sum():
            result[f"loss_{prefix}"] = float(sums[indices].sum() / tokens[indices].sum())
    return result


def greedy_tokens(
    model: TrainableModel, params: PyTree, examples: Examples, batch_size: int
) -> list[list[int]]:
    """Decodes n examples greedily and returns the ids of each output, at most T tokens."""
    sampling = Sampling(max_length=examples.targets.tokens.shape[1], greedy=True)
    outputs = []
    for batch in spread_batches(examples, batch_size):
        keys = sequence_keys(0, batch["example_id"], [0])  # required, but unused by greedy decoding
        out = sample(model, params, batch["inputs"], keys, sampling)
        tokens, lengths = to_host((out.tokens[:, 0], out.lengths[:, 0]))
        outputs += [ids[:n].tolist() for ids, n in zip(tokens, lengths, strict=True)]
    return outputs[: len(examples)]


def write_samples(path: Path, examples: Examples, texts: list[str]) -> None:
    """Writes one paragraph per example: document, reference and decoded output (`texts`)."""
    columns = zip(examples.documents, examples.summaries, texts, strict=False)
    paragraphs = [f"document:  {d}\nreference: {s}\ndecoded:   {t}\n" for d, s, t in columns]
    write_file(path, "\n".join(paragraphs).encode())
