"""Rewards read lengths and not ids: any id may pad, and id 0 may be an ordinary token."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.models.heads import Pooling, ValueHead
from dera_jax.models.language_model import Padded, Prompts
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.learned import Entailment, RewardModel
from dera_jax.rewards.protocol import Source
from dera_jax.rewards.tokens import TokenOverlap
from dera_jax.rewards.words import Faithfulness
from tests import prompts

EOS, K, T = 1, 6, 7
PIECES = [b"", b"", b" ab", b" cd", b" ef", b"g", b" hi", b" jk", b" lm", b" no"]
MODEL = T5(T5Config(len(PIECES), 16, 2, 1, 1, 8, 16, ("relu",), True, end_ids=(EOS,)))
LENGTHS = np.array([12, 5, 9])  # of the documents, which have room for 12 tokens


@dataclasses.dataclass(frozen=True)
class Texts:
    """What a reward reads, and the model and vocabulary that it reads it with."""

    documents: Prompts
    targets: Padded
    texts: Padded
    model: T5
    params: object
    pieces: list[bytes]


@functools.cache
def plain() -> Texts:
    """Ids from 2 on, padded with 0. OTHER is among them, and in all that is read."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(2, len(PIECES), shape)
    documents, targets, texts = draw(3, 12), draw(3, 5), draw(3, K, T)
    documents[:, 1] = targets[:, 1] = texts[..., 1] = prompts.OTHER
    documents[np.arange(3), LENGTHS - 1] = EOS
    lengths = rng.integers(3, T + 1, (3, K))
    given = [
        Prompts(documents, LENGTHS),
        Padded(targets, np.array([3, 5, 4])),
        Padded(texts, lengths),
    ]
    given = [prompts.repadded(x, 0) for x in given]
    params = MODEL.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x * 3, params)  # so that its outputs differ
    return Texts(*given, MODEL, params, PIECES)


def with_padding(padding: int) -> Texts:
    given = plain()
    names = ("documents", "targets", "texts")
    changed = {name: prompts.repadded(getattr(given, name), padding) for name in names}
    return dataclasses.replace(given, **changed)


def renamed() -> Texts:
    """With id 0 as an ordinary token, padded with what was OTHER, and is padding no more."""
    given = plain()
    ids = lambda x: prompts.repadded(x.replace(tokens=prompts.renamed(x.tokens)), prompts.OTHER)
    model, params = prompts.renamed_t5(given.model, given.params)
    pieces = [PIECES[i] for i in prompts.renamed(np.arange(len(PIECES)))]
    sequences = map(ids, (given.documents, given.targets, given.texts))
    return Texts(*sequences, model, params, pieces)


VARIANTS = {
    "another id": lambda: with_padding(9),
    "an id within": lambda: with_padding(prompts.FIRST),
    "id 0 is a token": renamed,
}


def overlap(given: Texts):
    return TokenOverlap(), jnp.asarray(EOS)


def faithful(given: Texts):
    reward = Faithfulness()
    return reward, reward.load(SimpleNamespace(pieces=lambda: given.pieces))


def scalar(given: Texts):
    head = {"kernel": jnp.linspace(-1, 1, MODEL.emb_dim), "bias": jnp.ones(())}
    return RewardModel(ValueHead(given.model)), {"trunk": given.params, "head": head}


def conversation(given: Texts):
    """A reward model that reads the last token; the end of the conversation has two ids."""
    _, params = scalar(given)
    model = ValueHead(given.model, Pooling("last"))
    ending = prompts.renamed([EOS, 7]) if given.model != MODEL else [EOS, 7]
    return RewardModel(model), {"model": params, "ending": jnp.asarray(ending)}


def entailment(given: Texts):
    """Its words are ids of the vocabulary."""
    is_new = given.model != MODEL
    words = {"premise": [4, 7], "hypothesis": [7], "answer": [2, 7, EOS], "end": [EOS]}
    words = {name: prompts.renamed(ids) if is_new else ids for name, ids in words.items()}
    words = {name: jnp.asarray(ids) for name, ids in words.items()}
    reward = Entailment(given.model, max_length=20)
    return reward, {"model": given.params, **words}


_compiled = jax.jit(lambda reward, *arguments: reward(*arguments), static_argnums=0)


def rewards_of(make, given: Texts) -> np.ndarray:
    document = Padded(given.documents.tokens, given.documents.lengths)
    source = Source(given.documents, given.targets, document=document)
    texts = given.texts.tokens, given.texts.lengths, np.zeros((3, K), bool)
    return np.asarray(_compiled(*make(given), source, *texts))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [overlap, faithful, scalar, conversation, entailment])
def test_padding_is_told_by_lengths_alone(make, variant):
    expected = rewards_of(make, plain())
    assert len(np.unique(expected.round(4))) > 3
    found = rewards_of(make, VARIANTS[variant]())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_of_entailment_are_told_by_lengths_alone(variant):
    def joined(given: Texts) -> Prompts:
        reward, params = entailment(given)
        return reward.prompts(params, given.documents, given.texts.tokens, given.texts.lengths)

    expected, found = joined(plain()), joined(VARIANTS[variant]())
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    ids = np.asarray(found.tokens)
    ids = prompts.renamed(ids) if variant == "id 0 is a token" else ids
    mask = np.asarray(expected.mask)
    np.testing.assert_array_equal(ids[mask], np.asarray(expected.tokens)[mask])
    document = min(LENGTHS[0], 20 - 2 - 1 - T - 1)  # whatever there is no room for is cut
    assert document < LENGTHS[0]
    sizes = 2 + document + 1 + np.asarray(plain().texts.lengths)[0] + 1
    np.testing.assert_array_equal(expected.lengths[0], sizes)
