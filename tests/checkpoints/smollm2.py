"""Compares SmolLM2-135M-Instruct from its GGUF file with transformers from the same file, in float32.

A process of its own, which holds one of the models after the other, for 50 prompts and 64 tokens of each:
python -m tests.checkpoints.smollm2 50 64
"""

import resource
import sys

import numpy as np
import torch
import transformers

from dera_jax.checkpoints import default_model
from dera_jax.checkpoints.loading import load
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import (
    Prompts,
    next_token_logits,
    pad_sequences,
    sequence_keys,
)
from tests.greedy import check_greedy

SUBJECTS = (
    "the sea", "bread", "old maps", "a bicycle", "winter", "the number 12345", "rain in Lisbon", "honey bees",
    "how steam engines work", "prime numbers", "a letter to a friend", "chess", "the Moon", "green tea",
    "why the sky is blue", "a broken clock", "volcanoes", "jazz", "the Roman Empire", "photosynthesis",
    "a recipe with potatoes", "gravity", "owls", "the history of paper", "mountains", "a train at night",
    "DNA", "the desert", "learning to swim", "glass", "an umbrella", "electric cars", "the violin", "coral reefs",
    "a lost dog", "democracy", "salt", "a lighthouse", "black holes", "knitting", "earthquakes", "the alphabet",
    "apples", "a job interview", "rivers", "the stock market", "vaccines", "dreams", "a museum", "sleep",
)  # fmt: skip
STYLES = (
    "Write two sentences about {}.",
    "{}?",
    "Explain to a child of eight years, who asks many questions: {}",
)


TOKENS = np.random.default_rng(0).integers(
    0, 49152, (6, 1, 7)
)  # after the first prompts, for logits


def ours(path, count: int, length: int) -> tuple[list[list[int]], np.ndarray, list[np.ndarray]]:
    """Prompts of several lengths; logits [6, 7, V] that predict TOKENS; greedy texts of all prompts in one batch."""
    model = load(path)
    texts = [STYLES[i % 3].format(subject) for i, subject in enumerate(SUBJECTS[:count])]
    rows = [model.encode_prompt(text, 200).ids for text in texts]
    few = Prompts(*pad_sequences(rows[: len(TOKENS)], max(map(len, rows[: len(TOKENS)]))))
    logits = np.asarray(next_token_logits(model.model, model.params, few, TOKENS))[:, 0]
    prompts, keys = Prompts(*pad_sequences(rows, max(map(len, rows)))), np.arange(len(rows))
    found = sample(
        model.model,
        model.params,
        prompts,
        sequence_keys(0, keys, [0]),
        Sampling(length, greedy=True),
    )
    tokens, lengths = np.asarray(found.tokens[:, 0]), np.asarray(found.lengths[:, 0])
    return rows, logits, [text[:length] for text, length in zip(tokens, lengths, strict=True)]


def main() -> None:
    path, (count, length) = default_model._packaged()[0], map(int, sys.argv[1:])
    rows, logits, texts = ours(path, count, length)
    assert len(rows) == count and len({len(row) for row in rows[: len(TOKENS)]}) > 3
    assert sum(map(len, texts)) > 0.6 * count * length
    network = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    for row, output, found in zip(rows, TOKENS[:, 0], logits, strict=False):
        with torch.no_grad():
            expected = network(torch.tensor([[*row, *output]])).logits[0, len(row) - 1 : -1].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std(), rtol=0)
    assert check_greedy(network, rows, texts) < 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory {peak / 1e9:.2f} GB")
    print("identical")


if __name__ == "__main__":
    main()
