"""Compares greedy texts with those of transformers, at every token."""

import numpy as np
import torch

from dera_jax.models.language_model import pad_sequences

NEAR_TIE = 1e-3  # of the spread of logits, between the first and the second token


def check_greedy(network, prompts, texts) -> int:
    """Returns the number of near-ties, which are printed; raises AssertionError at any other difference.

    Each token is theirs after the tokens before it, so that one pass over the texts shows what
    decoding them step by step would. A causal model's logits do not depend on the padding behind them.

    Args:
        network: a decoder-only model of transformers.
        prompts, texts: token ids of each prompt, and of its greedy text.
    """
    rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    near_ties = 0
    for start in range(0, len(rows), 10):  # 10 at once, for memory
        ids, _ = pad_sequences(rows[start : start + 10], max(map(len, rows)))
        with torch.no_grad():
            logits = network(torch.tensor(np.asarray(ids))).logits.numpy()
        for i, found in enumerate(logits, start):
            begin = len(prompts[i]) - 1
            expected = found[begin : len(rows[i]) - 1]
            for place in np.flatnonzero(expected.argmax(-1) != np.asarray(texts[i])):
                near_ties += 1
                _check_near_tie(expected[place], int(texts[i][place]), f"token {place} of text {i}")
    return near_ties


def _check_near_tie(logits, token: int, where: str) -> None:
    gap = (logits.max() - logits[token]) / logits.std()
    print(f"near-tie at {where}: {token} and {logits.argmax()}, {gap:.1e} of the spread apart")
    assert gap < NEAR_TIE
