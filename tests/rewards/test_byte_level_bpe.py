"""The reward of the shipped adapters on byte-level BPE, beside its value on the decoded text."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from dera_jax.checkpoints import default_model
from dera_jax.checkpoints.gguf_file import open_gguf
from dera_jax.checkpoints.gguf_tokenizer import vocabulary_of
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.resources import RunResources
from dera_jax.models.language_model import Padded, pad_sequences
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.protocol import Source
from dera_jax.rewards.scoring import score
from dera_jax.rewards.words import Faithfulness, WordsInRange
from tests import prompts

REWARD = Combined((Part("faithful", Faithfulness()), Part("words", WordsInRange(3, 6, True), 0.5)))
DOCUMENTS = [
    "The parser of Müller et al. reaches 92.2% on Chinese (中文) and naïve English, says the café 🙂.",
    "We tokenize हिन्दी texts, e.g. state-of-the-art neural\u00a0models, with 1,000 merges!",
]
# Each output, whether the length limit truncated it, and the reward: the fraction of its content
# words that occur in the document, minus 0.5 unless it ended with 3 to 6 words.
OUTPUTS = [
    [
        ("The parser reaches 92.2% on Chinese", False, 1 - 0.5),  # 7 words: 92 and 2
        ("Müller reaches naïve Chinese", False, 1.0),
        ("MÜLLER's NAI\u0308VE cafe", False, 2 / 3),  # s is no content word; the accent counts
        ("It is the café 中文🙂", False, 1.0),  # café, 中, 文
        ("A parser outperforms café-goers", False, 2 / 4),
        ("English", False, 1 - 0.5),
        ("English is says parser", True, 1 - 0.5),
        ("", False, 0 - 0.5),
        ("🙂 🙂", False, 0 - 0.5),
    ],
    [
        ("हिन्दी texts and neural models", False, 1.0),
        ("\n\n हिन्दी\ttexts_are tokenized\u00a0here!", False, 1 / 3),  # not "texts"
        ("state of the art", False, 1.0),  # state and art, of 4 words
        ("1,000 merges we tokenize", False, 1.0),
        ("1000 merges tokenize", False, 2 / 3),
        ("हिन्द texts 中文", False, 1 / 4),  # another word than हिन्दी
        ("the of and", False, 0.0),
        ("neural neural parser", True, 2 / 3 - 0.5),
        ("models", False, 1 - 0.5),
    ],
]


@pytest.fixture(scope="module", params=["trained here", "SmolLM2"])
def vocabulary(request, tmp_path_factory):
    if request.param == "SmolLM2":
        if importlib.util.find_spec(default_model.PACKAGE) is None:
            pytest.skip(f"needs {default_model.COMMAND}")
        return vocabulary_of(open_gguf(default_model.default_model()))
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(DOCUMENTS * 3, trainer)
    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    built.save(str(file))
    return JsonVocabulary(file, end="<end>", padding=None, unknown=None)


def test_the_reward_is_that_of_the_decoded_text(vocabulary):
    encode, end = vocabulary.encode, [vocabulary.end_id]
    ids = [[encode(x) + end * (not cut) for x, cut, _ in row] for row in OUTPUTS]
    pieces = vocabulary.piece_bytes()
    split = [x for row in ids for x in row if any(not is_text(pieces[i]) for i in x)]
    assert len(split) > 2  # outputs with a character that pieces divide
    tokens, lengths = zip(*(pad_sequences(row, 80) for row in ids), strict=True)
    finished = np.array([[not cut for _, cut, _ in row] for row in OUTPUTS])
    document = Padded(*pad_sequences([encode(x) for x in DOCUMENTS], 200))
    source = Source(prompts.whole(np.ones((2, 1))), document=document)
    params = REWARD.load(RunResources(vocabulary))
    total, _ = score(REWARD, params, source, jnp.stack(tokens), jnp.stack(lengths), finished)
    expected = [[value for *_, value in row] for row in OUTPUTS]
    np.testing.assert_allclose(total, expected, atol=1e-6)


def is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
