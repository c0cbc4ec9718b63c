"""Rewards from gin files: each one that ships, and a user's own Python function."""

import json
import sys
from pathlib import Path

import gin
import numpy as np
import pytest

import dera_jax.tasks  # noqa: F401 (registers `newswire`)
from dera_jax import configure, main
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.models.heads import ValueHead
from dera_jax.rewards import combined, protocol, words
from tests import published
from tests.experiments import small

REWARDS = sorted(Path("gin_configs/rewards").glob("*.gin"))

MODULE = '''
CALLS = []

def vowels(documents, texts):
    """Share of vowels, and who asked."""
    CALLS.append((list(documents), list(texts)))
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in texts]

def letters(documents, texts):
    return [len(text) for text in texts]

def broken(documents, texts):
    raise KeyError("a fault in my_rewards")

def misled(documents, texts):
    from dera_jax.rewards.words import faithful_fraction
    return [faithful_fraction(None, text) for text in texts]  # raised in the library
'''

GIN = """
from __gin__ import dynamic_registration
import my_rewards
from dera_jax.rewards import host
REWARD = @host.HostReward()
host.HostReward.fn = @my_rewards.{function}
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> str:
    return small.reference_folder(tmp_path_factory.mktemp("reference") / "model")


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A folder on PYTHONPATH with a module of the user's, and gin files that name its functions."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_rewards.py").write_text(MODULE)
    for function in ("vowels", "broken", "misled"):
        (folder / f"{function}.gin").write_text(GIN.format(function=function))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def run(files: list[str], folder: Path, **macros: object) -> dict:
    arguments = [f"--gin_file={name}" for name in files]
    arguments += [f"--gin.{key}={value!r}" for key, value in macros.items()]
    main.main([*arguments, f"--gin.MODEL_DIR={str(folder)!r}"])
    return json.loads((folder / "result.json").read_text())


SMALL = {"TASK": "newswire", "INPUTS": 16, "MAX_LENGTH": 8}


def calls_of_my_rewards() -> list:
    return sys.modules["my_rewards"].CALLS if "my_rewards" in sys.modules else []


def test_a_user_s_function_rewards_samples_and_best_of_n(reference, user, tmp_path):
    files = ["gin_configs/runs/best_of_n.gin", str(user / "vowels.gin")]
    pair = {"REFERENCE": reference, "ALIGNED": reference}
    settings = SMALL | pair | {"DOCUMENTS": 4, "BATCH_SIZE": 2, "SAMPLES": 4, "SIZES": (1, 4)}
    before = len(calls_of_my_rewards())
    rows = run(files, tmp_path / "best", **settings, LAMBDAS=(0.0, 0.5))["best_of"]
    assert len(calls_of_my_rewards()) - before == 2  # once for each batch of 2 documents
    documents, texts = calls_of_my_rewards()[-1]
    assert len(documents) == len(texts) == 2 * 4 * 2
    # The task's whole text, though the model reads 16 tokens of it.
    assert all(len(document.split()) > 16 for document in documents)
    records = [json.loads(x) for x in (tmp_path / "best" / "records.jsonl").open()]
    for record in records:
        for s in record["samples"]:
            vowels = sum(c in "aeiou" for c in s["text"]) / max(len(s["text"]), 1)
            assert s["reward"] == pytest.approx(vowels)
    for lam in (0.0, 0.5):
        of = lambda r, lam=lam: [s["reward"] for s in r["samples"] if s["lam"] == lam]
        best = sum(max(of(r)) for r in records) / len(records)
        (row,) = [row for row in rows if row["n"] == 4 and row["lam"] == lam]
        assert row["reward"] == pytest.approx(best)
        assert row["kl_bound"] == pytest.approx(1.3863 - 0.75, abs=1e-4)
    assert (tmp_path / "best" / "best_of_n.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_user_s_function_rewards_ppo(reference, user, tmp_path):
    files = ["gin_configs/runs/ppo.gin", str(user / "vowels.gin")]
    settings = SMALL | {"TARGETS": 16, "PPO_BATCH_SIZE": 4, "ROLLOUTS": 2, "MINIBATCHES": 2}
    before = len(calls_of_my_rewards())
    found = run(
        files,
        tmp_path / "ppo",
        REFERENCE=reference,
        **settings,
        PPO_STEPS=3,
        BETA=0.05,
    )
    rounds = calls_of_my_rewards()[before:]
    assert len(rounds) == 3 and {len(texts) for _, texts in rounds} == {4 * 2}
    means = [_mean(texts) for _, texts in rounds]
    assert found["reward"] == pytest.approx(sum(means) / 3, abs=1e-5)
    assert "in_range_rate" not in found
    load(tmp_path / "ppo" / "aligned")
    config = (tmp_path / "ppo" / "config.gin").read_text()
    assert config.count("# SHA-256 of the source of my_rewards.vowels: ") == 1


def _mean(texts: list[str]) -> float:
    return sum(sum(c in "aeiou" for c in x) / max(len(x), 1) for x in texts) / len(texts)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("broken", KeyError, "a fault in my_rewards"), ("misled", AttributeError, "isascii")],
)
def test_a_fault_in_a_user_s_function_keeps_its_traceback(
    name, error, message, reference, user, tmp_path
):
    files = ["gin_configs/runs/sweep.gin", str(user / f"{name}.gin")]
    pair = {"REFERENCE": reference, "ALIGNED": reference}
    with pytest.raises(error, match=message) as caught:
        run(files, tmp_path / "broken", **SMALL, **pair, DOCUMENTS=2, SAMPLES=1)
    assert any(entry.name == name for entry in caught.traceback)


def test_a_wrong_answer_of_a_user_s_function_is_a_sentence(reference, user, tmp_path):
    (user / "none.gin").write_text(GIN.format(function="none"))
    sys.modules["my_rewards"].none = lambda documents, texts: None
    pair = {"REFERENCE": reference, "ALIGNED": reference}
    files = ["gin_configs/runs/sweep.gin", str(user / "none.gin")]
    with pytest.raises(SystemExit, match="must return one float for each text; found None"):
        run(files, tmp_path / "none", **SMALL, **pair, DOCUMENTS=2, SAMPLES=1)


def test_a_dry_run_with_a_user_s_function_has_two_calls(
    reference, user, tmp_path, capsys, monkeypatch
):
    small.only_trace(monkeypatch)
    arguments = ["--gin_file=gin_configs/runs/ppo.gin", f"--gin_file={user / 'vowels.gin'}"]
    settings = SMALL | {"TARGETS": 16, "PPO_BATCH_SIZE": 4, "REFERENCE": reference}
    arguments += [f"--gin.{key}={value!r}" for key, value in settings.items()]
    main.main([*arguments, f"--gin.MODEL_DIR={str(tmp_path / 'x')!r}", "--dry_run"])
    said = capsys.readouterr().out
    assert "PPO rollout: at most 128 tokens" in said and "PPO updates: at most 128 tokens" in said


@pytest.mark.parametrize("file", REWARDS, ids=lambda path: path.stem)
def test_every_reward_file_makes_a_reward(file, reference, tmp_path):
    loaded = load(reference)
    value = ValueHead(loaded.model)
    params = value.init(loaded.params)
    save_model(tmp_path / "scalar", small.CONFIG, loaded.vocabulary, params, {})
    text = file.read_text()
    needs = {
        "MODEL_DIR": str(tmp_path / "run"),
        "REFERENCE": reference,
        "TARGET": 7,
        "AT_MOST": 27,
        "REWARD_MODEL": str(tmp_path / "scalar"),
        "ENTAILMENT_MODEL": reference,
        "REWARD_NAME": "words:10-22",
    }
    bindings = [
        f"{name} = {value!r}"
        for name, value in needs.items()
        if f"\n{name} =" in text or name in ("MODEL_DIR", "REFERENCE")
    ]
    configure.parse(["gin_configs/runs/ppo.gin", str(file)], bindings, ["."])
    found = gin.get_configurable("dera_jax.training.ppo.AlignmentObjective")().reward
    assert isinstance(found, protocol.Reward)
    hash(found)  # it is a static argument of compiled functions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "way"), [("qwen", "in the compiled program"), ("zephyr", "reads texts")]
)
def test_a_published_reward_model_scores_a_sweep(style, way, tmp_path, capfd):
    """From its path alone; the file says which way it is used."""
    model = published.published(tmp_path / "reward", "qwen2")
    policy = str(published.policy(tmp_path / "policy", style))
    files = ["gin_configs/runs/sweep.gin", "gin_configs/rewards/reward_model.gin"]
    pair = {"REFERENCE": policy, "ALIGNED": policy, "REWARD_MODEL": str(model)}
    sizes = {"TASK": "newswire", "INPUTS": 512, "DOCUMENTS": 3, "SAMPLES": 2, "BATCH_SIZE": 2}
    run(files, tmp_path / "sweep", **pair, **sizes, MAX_LENGTH=8, LAMBDAS=(0.0,))
    assert way in capfd.readouterr().err
    records = [json.loads(x) for x in (tmp_path / "sweep" / "records.jsonl").open()]
    found = [s["reward"] for record in records for s in record["samples"]]
    assert len(set(found)) == 6
    if style == "zephyr":
        texts = [(x["document"], s["text"]) for x in records for s in x["samples"]]
        sequences = [published.conversation(model, *x) for x in texts]
        expected = published.scores_of_transformers(model, sequences)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_words_in_range_takes_both_limits(reference, tmp_path):
    needs = {"MODEL_DIR": str(tmp_path), "REFERENCE": reference, "AT_LEAST": 3, "AT_MOST": 9}
    bindings = [f"{name} = {value!r}" for name, value in needs.items()]
    configure.parse(["gin_configs/runs/ppo.gin", "gin_configs/rewards/words.gin"], bindings, ["."])
    objective = gin.get_configurable("dera_jax.training.ppo.AlignmentObjective")()
    assert objective.reward == words.WordsInRange(3, 9)


def test_faithful_words_is_a_sum_with_fixed_weights(reference, tmp_path):
    bindings = [f"MODEL_DIR = {str(tmp_path)!r}", f"REFERENCE = {reference!r}"]
    files = ["gin_configs/runs/ppo.gin", "gin_configs/rewards/faithful_words.gin"]
    for given, penalty, hard in (
        ([], 0.5, True),
        (["WORD_PENALTY = 0.05", "HARD = False"], 0.05, False),
    ):
        configure.parse(files, bindings + given, ["."])
        objective = gin.get_configurable("dera_jax.training.ppo.AlignmentObjective")()
        in_range = combined.Part("words", words.WordsInRange(10, 22, hard), penalty)
        faithful = combined.Part("faithful", words.Faithfulness())
        assert objective.reward == combined.Combined((faithful, in_range))
        gin.clear_config()


SUM = """
from __gin__ import dynamic_registration
import my_rewards
from dera_jax.evaluation import reward_statistics
from dera_jax.rewards import combined
from dera_jax.rewards import host
REWARD = @combined.Combined()
STATISTICS = None
combined.Combined.terms = (@a/combined.Part(), @b/combined.Part())
combined.Combined.statistics = @reward_statistics.read()
reward_statistics.read.path = %STATISTICS
a/combined.Part.name = 'vowels'
a/combined.Part.reward = @a/host.HostReward()
a/host.HostReward.fn = @my_rewards.vowels
b/combined.Part.name = 'letters'
b/combined.Part.reward = @b/host.HostReward()
b/combined.Part.weight = -2.0
b/host.HostReward.fn = @my_rewards.letters
"""


@pytest.mark.evidence
def test_statistics_standardise_a_sum(reference, user, tmp_path):
    """Over the texts that it was calibrated on, the standardised parts have mean 0 and spread 1."""
    (user / "sum.gin").write_text(SUM)
    settings = SMALL | {"REFERENCE": reference, "DOCUMENTS": 6, "SAMPLES": 4}
    files = ["gin_configs/runs/statistics.gin", str(user / "sum.gin")]
    found = run(files, tmp_path / "s", **settings)
    assert set(found) == {"vowels", "letters"}
    pair = settings | {"ALIGNED": reference, "SPLIT": "train", "LAMBDAS": (0.0,)}
    files = ["gin_configs/runs/sweep.gin", str(user / "sum.gin")]
    statistics = str(tmp_path / "s" / "statistics.json")
    run(files, tmp_path / "sweep", **pair, STATISTICS=statistics)
    records = [json.loads(x) for x in (tmp_path / "sweep" / "records.jsonl").open()]
    samples = [s for record in records for s in record["samples"]]
    scaled = {
        name: np.array([(s[f"reward_{name}"] - x["mean"]) / x["std"] for s in samples])
        for name, x in found.items()
    }
    for values in scaled.values():
        assert values.mean() == pytest.approx(0, abs=1e-5)
        assert values.std() == pytest.approx(1, abs=1e-5)
    expected = scaled["vowels"] - 2 * scaled["letters"]
    np.testing.assert_allclose([s["reward"] for s in samples], expected, atol=1e-4)
