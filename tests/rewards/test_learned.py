"""Networks as rewards, against the same networks called on one whole text at a time."""

from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.learned_rewards import entailment, reward_model
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.resources import DryRunResources, RunResources
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import Padded, Prompts, next_token_logits, pad_sequences
from dera_jax.models.llama_lm import Llama
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.combined import Combined, Part
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.learned import Entailment, RewardModel
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Source
from tests import prompts
from tests.tiny import LLAMA

CONFIG = T5Config(4096, 32, 2, 1, 1, 16, 64, ("relu",), True)
DOCUMENTS = ["solve(a, b): the solution of a x = b.", "the mean of an array."]
TEXTS = [["solve a linear system.", "returns x."], ["the mean", "computes the mean of the array."]]
MAX_LENGTH = 16
ASSETS = Path(str(resources.files("dera_jax"))) / "assets"


@pytest.fixture(scope="module")
def vocabulary():
    return SentencePieceVocabulary(ASSETS / "docstrings.model", extra_ids=96)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vocabulary):
    """A text-to-text model, and a reward model whose head is not 0."""
    folder = tmp_path_factory.mktemp("models")
    model = T5(CONFIG)
    params = model.init(jax.random.key(0))
    save_model(folder / "text", CONFIG, vocabulary, params, {})
    value = ValueHead(model).init(params)
    value["head"] = {"kernel": jax.random.normal(jax.random.key(1), (32,)), "bias": jnp.ones(())}
    save_model(folder / "scalar", CONFIG, vocabulary, value, {})
    return folder


@pytest.fixture(scope="module")
def batch(vocabulary):
    """source, tokens [2, 2, T], lengths, finished; the last text was cut off."""
    encode = tokenizer(vocabulary).encode
    asked = [tokenizer(vocabulary).encode_prompt(f"summarize: {x}", 40).ids for x in DOCUMENTS]
    source = Source(
        Prompts(*pad_sequences(asked, 40)),
        document=Padded(*pad_sequences([encode(x) for x in DOCUMENTS], 40)),
    )
    tokens = np.zeros((2, 2, MAX_LENGTH), np.int32)
    finished = np.array([[True, True], [True, False]])
    for index in np.ndindex(2, 2):
        ids = encode(TEXTS[index[0]][index[1]]) + [1] * int(finished[index])
        tokens[index][: len(ids)] = ids
    return source, tokens, np.sum(tokens > 0, axis=-1), finished


def test_a_reward_model_reads_the_whole_text(folders, vocabulary, batch):
    """Its score is the mean of the head on the states before and after each token of the text."""
    reward = reward_model(str(folders / "scalar"))
    params = reward.load(RunResources(vocabulary))
    source, tokens, lengths, finished = batch
    reward_of = jax.jit(lambda tokens: reward(params, source, tokens, lengths, finished))
    found = reward_of(tokens)
    values_of = jax.jit(reward.model.values)
    for b, k in np.ndindex(2, 2):
        n = lengths[b, k]
        alone = np.append(tokens[b, k], 0)[None, None]
        alone[..., n] = 7  # what comes after the text is not read
        values = values_of(
            params, jax.tree.map(lambda x, b=b: x[b : b + 1], source.prompts), alone
        )[0, 0]
        assert found[b, k] == pytest.approx(float(values[: n + 1].mean()), abs=1e-4)
    changed = tokens.copy()
    changed[0, 0, lengths[0, 0] - 2] = 99  # the last word
    assert abs(float(reward_of(changed)[0, 0] - found[0, 0])) > 1e-3
    behind = np.where(tokens == 0, 55, tokens)  # behind the text
    np.testing.assert_array_equal(reward_of(behind), found)


def test_entailment_is_the_label_s_log_probability(folders, vocabulary, batch):
    """Against the label's teacher-forced log-probability after the prompt written out as text."""
    reward = entailment(str(folders / "text"), max_length=64, label="entailment")
    params = reward.load(RunResources(vocabulary))
    source, tokens, lengths, finished = batch
    found = jax.jit(reward.__call__)(params, source, tokens, lengths, finished)
    assert found.max() < reward.highest
    loaded = load(folders / "text")
    encode = tokenizer(vocabulary).encode
    answer = np.array([*encode("entailment"), 1])
    for b, k in np.ndindex(2, 2):
        prompt = [*encode(f"premise: {DOCUMENTS[b]} hypothesis: {TEXTS[b][k]}"), 1]
        logits = next_token_logits(
            loaded.model, loaded.params, prompts.whole([prompt]), jnp.array(answer)[None, None]
        )[0, 0]
        log_probs = jax.nn.log_softmax(logits)
        expected = float(log_probs[np.arange(len(answer)), answer].sum())
        assert found[b, k] == pytest.approx(expected, abs=1e-3)


def test_a_prompt_is_the_tokens_of_its_text(folders, vocabulary, batch):
    reward = entailment(str(folders / "text"), max_length=64)
    params = reward.load(RunResources(vocabulary))
    source, tokens, lengths, finished = batch
    found = reward.prompts(params, source.document, tokens, lengths - finished)
    encode = tokenizer(vocabulary).encode
    text = f"premise: {DOCUMENTS[0]} hypothesis: {TEXTS[0][0]}"
    expected = [*encode(text), 1]
    assert found.tokens.shape == (2, 2, 64) and found.lengths[0, 0] == len(expected)
    assert found.tokens[0, 0, : len(expected)].tolist() == expected


def test_a_decoder_s_prompt_begins_and_does_not_end():
    """The answer goes on with the text of the prompt."""

    class Words(DryRunResources):
        encode = lambda self, text: [30 + len(word) for word in text.split()]
        control_tokens = lambda self, ends_prompts: ([], [1]) if ends_prompts else ([7], [])

    def joined(model) -> list[int]:
        reward = Entailment(model, max_length=12)
        params = reward.load(Words(64, end_id=1))
        assert params["answer"].tolist() == [30 + len("entailment"), 1]
        document = Padded(np.array([[20, 21, 0]]), np.array([2]))
        text = np.array([[[50, 51, 52]]]), np.array([[2]])
        found = reward.prompts(params, document, *text)
        return found.tokens[0, 0, : int(found.lengths[0, 0])].tolist()

    alone = [30 + len("premise:"), 20, 21, 30 + len("hypothesis:"), 50, 51]
    assert joined(Llama(LLAMA)) == [7, *alone]
    assert joined(T5(CONFIG)) == [*alone, 1]


def test_the_document_s_own_ids_are_needed(folders, vocabulary, batch):
    reward = entailment(str(folders / "text"), max_length=64)
    source, *texts = batch
    with pytest.raises(ValueError, match="Entailment needs the documents' own ids"):
        reward(reward.load(RunResources(vocabulary)), source.replace(document=None), *texts)


def test_a_long_document_leaves_room_for_the_text(folders, vocabulary):
    reward = entailment(str(folders / "text"), max_length=40)
    params = reward.load(RunResources(vocabulary))
    documents = prompts.whole(np.full((1, 80), 500))
    tokens = np.full((1, 1, MAX_LENGTH), 600)
    found = reward.prompts(params, documents, tokens, np.array([[MAX_LENGTH]]))
    assert found.lengths.tolist() == [[40]]
    prompt = np.asarray(found.tokens)[0, 0]
    assert (prompt == 600).sum() == MAX_LENGTH and prompt[-1] == 1
    words = sum(len(params[name]) for name in ("premise", "hypothesis"))
    assert (prompt == 500).sum() == 40 - words - MAX_LENGTH - 1
    with pytest.raises(ValueError, match="max_length 20 leaves no room for a document"):
        entailment(str(folders / "text"), 20).prompts(params, documents, tokens, np.array([[1]]))


def test_positions_of_networks_and_of_their_sum():
    """6 texts of up to 16 tokens about a document of 40, counted by hand."""
    value = RewardModel(ValueHead(T5(CONFIG)))
    label = Entailment(T5(CONFIG), max_length=64)
    assert value.forward_tokens(40, 6, 16) == 40 + 6 * 17 == 142
    assert label.forward_tokens(40, 6, 16) == 6 * 64 == 384
    formulas = [Part("length", LengthInRange(1, 2)), Part("host", HostReward(max))]
    assert [x.reward.forward_tokens(40, 6, 16) for x in formulas] == [0, 0]
    both = Combined((*formulas, Part("value", value, 0.5), Part("label", label, 0.0)))
    assert both.forward_tokens(40, 6, 16) == 142 + 384  # what has no weight is computed too


def test_a_log_probability_is_bounded_and_a_head_is_not():
    assert (
        Entailment(T5(CONFIG)).highest == 0 and RewardModel(ValueHead(T5(CONFIG))).highest is None
    )


def test_a_model_of_another_vocabulary_is_refused(folders):
    with pytest.raises(ValueError, match="vocabularies differ at id 0"):
        reward_model(str(folders / "scalar")).load(RunResources(ByteVocabulary()))
    with pytest.raises(ValueError, match="is no reward model"):
        reward_model(str(folders / "text"))
    with pytest.raises(ValueError, match="holds a reward model"):
        load(folders / "scalar")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        reward_model(str(folders / "nothing"))
