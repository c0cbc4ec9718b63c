"""Choosing λ: that coarse to fine finds the best λ of a known curve, and that the rule is kept."""

import json
from types import SimpleNamespace

import jax
import pytest

from dera_jax.checkpoints.model_folder import save_model
from dera_jax.data.splits import Split
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import record_store
from dera_jax.evaluation import sweep as sweep_module
from dera_jax.evaluation.choose import Choice, Rule, choose, refine
from dera_jax.evaluation.pair_sweep import PairSweep
from dera_jax.evaluation.sweep import Sweep
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.length import LengthInRange
from dera_jax.tasks import newswire

CARD = {
    "beta": 0.3,
    "step": 10,
    "data": {"batch_size": 4},
    "updates": {"rollouts": 2, "epochs": 3, "minibatches": 5},
}


def decoding(reference="reference", aligned="aligned") -> PairSweep:
    sampling, reward = Sampling(max_length=8), LengthInRange(2, 5)
    settings = Sweep((0.0, 1.0, 2.0, 3.0), 2, sampling, reward, batch_size=2, seed=0)
    return PairSweep(reference, aligned, Split("newswire", "validation", 16, 3), settings)


class Curve:
    """Stands for a loaded pair: reward −(λ − 1.3)², KL λ²/4, ROUGE-L falling by a tenth per λ."""

    pair = SimpleNamespace(cards=({}, CARD))
    rounding = 0.0

    def decode(self, settings, folder, prefills):
        return [self.record(i, settings) for i in range(2)]

    def record(self, i, settings):
        words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        sample = lambda lam: {
            "lam": lam,
            "reward": -((lam - 1.3) ** 2) + (2 * i - 1) * 1e-3,
            "kl": lam**2 / 4 + self.rounding,
            "length": 5,
            "text": " ".join(words[: round(10 - lam)]),
        }
        samples = [sample(lam) for lam in settings.lams for _ in range(2)]
        return {
            "example_id": i,
            "document": " ".join(words),
            "summary": " ".join(words),
            "samples": samples,
        }


def run(monkeypatch, folder, rule: Rule, rounds: int) -> dict:
    monkeypatch.setattr(PairSweep, "load", lambda self: Curve())
    return Choice(decoding(), rule, rounds).run(folder)


def test_coarse_to_fine_finds_the_best_lambda(monkeypatch, tmp_path, capsys):
    result = run(monkeypatch, tmp_path, Rule(max_kl=5), rounds=4)
    assert result["lam"] == pytest.approx(1.3, abs=0.02)
    assert result["beta"] == pytest.approx(0.3 / result["lam"])
    assert f"= {0.3 / result['lam']:.4g}" in capsys.readouterr().out
    written = json.loads((tmp_path / "choice.json").read_text())
    assert len(written["rows"]) == 5 * 4
    assert (tmp_path / "choice.csv").read_text().count("\n") == 1 + 5 * 4
    assert (tmp_path / "choice.png").stat().st_size > 10_000
    # 18 λ beside 0 and 1; each run of 10 steps of 4 documents x 2 rollouts, 15 updates a step
    assert result["training_the_grid"] == {"runs": 18, "texts": 18 * 80, "updates": 18 * 150}


def test_the_limit_is_kept_and_approached(monkeypatch, tmp_path):
    result = run(monkeypatch, tmp_path, Rule(max_kl=0.25), rounds=4)
    assert 0.97 < result["lam"] <= 1  # KL λ²/4 is 0.25 at λ = 1
    result = run(monkeypatch, tmp_path, Rule(min_rouge_l=1.0), rounds=1)
    assert 0 < result["lam"] < 0.5  # from λ = 0.5 on a word is missing


def test_a_rouge_limit_that_every_lambda_keeps_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(Curve, "record", lambda *a: _RECORD(Curve(), *a[1:]) | {"summary": "…"})
    with pytest.raises(ValueError, match="reference's ROUGE-L is 0, so every λ would satisfy"):
        run(monkeypatch, tmp_path, Rule(min_rouge_l=0.9), rounds=1)


@pytest.mark.parametrize("rounding", [0.0, 3e-8])
def test_the_reference_is_a_possible_choice(monkeypatch, tmp_path, capsys, rounding):
    """Also where float32 puts its KL from itself a little above 0."""
    monkeypatch.setattr(Curve, "rounding", rounding)
    result = run(monkeypatch, tmp_path, Rule(max_kl=0), rounds=2)
    assert (result["lam"], result["beta"]) == (0, None)
    assert "no β is worth training" in capsys.readouterr().out


def test_the_edge_of_the_grid_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Curve, "record", lambda self, i, s: rising(Curve(), i, s))
    assert run(monkeypatch, tmp_path, Rule(max_kl=9), rounds=1)["lam"] == 3
    assert "largest λ tried" in capsys.readouterr().out


_RECORD = Curve.record


def rising(curve, i, settings):
    record = _RECORD(curve, i, settings)
    for sample in record["samples"]:
        sample["reward"] = sample["lam"]
    return record


def test_equal_rewards_go_to_the_smaller_lambda():
    rows = [{"lam": lam, "reward": -0.5, "allowed": lam > 0} for lam in (2.0, 1.0, 0.0)]
    assert choose(rows)["lam"] == 1.0


def test_refined_grids_lie_between_the_best_and_its_neighbours():
    assert refine([0, 1, 2, 3], 1, 4) == (0.3333, 0.6667, 1.3333, 1.6667)
    assert refine([0, 1, 2, 3], 3, 3) == (2.25, 2.5, 2.75)
    assert refine([0, 1], 0, 1) == (0.5,)


@pytest.mark.parametrize(
    "limits", [{}, {"max_kl": 1, "min_rouge_l": 0.9}, {"max_kl": -1}, {"min_rouge_l": 1.1}]
)
def test_a_rule_has_one_limit_that_the_reference_keeps(limits):
    with pytest.raises(ValueError, match="max_kl|min_rouge_l"):
        Rule(**limits)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    """A reference and an aligned model of no use."""
    root, config = (
        tmp_path_factory.mktemp("pair"),
        T5Config(1024, 16, 2, 1, 1, 8, 32, ("relu",), True),
    )
    for seed, (name, card) in enumerate({"reference": {}, "aligned": CARD}.items()):
        params = T5(config).init(jax.random.key(seed))
        save_model(root / name, config, newswire.vocabulary(), params, card)
    return str(root / "reference"), str(root / "aligned")


def test_the_encoder_works_once_per_batch_and_changes_nothing(folders, tmp_path, monkeypatch):
    calls = []
    prefill = sweep_module.prefill
    monkeypatch.setattr(sweep_module, "prefill", lambda *a: calls.append(1) or prefill(*a))
    choice = Choice(decoding(*folders), Rule(max_kl=1e9), rounds=2)
    choice.run(tmp_path / "choice")
    assert len(calls) == 2  # 3 documents in batches of 2, 3 rounds
    loaded = choice.decoding.load()
    for number in range(3):
        there = record_store.read(tmp_path / "choice" / f"round_{number}")
        lams = tuple(dict.fromkeys(s["lam"] for s in there[0]["samples"]))
        settings = Sweep(lams, 2, Sampling(max_length=8), LengthInRange(2, 5), 2, seed=0)
        alone = loaded.decode(settings, tmp_path / f"alone_{number}")
        for ours, theirs in zip(alone, there, strict=True):
            for one, other in zip(ours["samples"], theirs["samples"], strict=True):
                assert one["tokens"] == other["tokens"]
                for name in ("kl", "log_prob", "part_log_probs"):  # of two programs
                    assert one[name] == pytest.approx(other[name], abs=1e-4)


def test_an_aligned_model_that_does_not_say_its_beta_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="card.json does not say 'beta'"):
        Choice(decoding(folders[0], folders[0]), Rule(max_kl=1), 0).run(tmp_path)


def test_a_grid_without_the_reference_is_refused():
    with pytest.raises(ValueError, match="from λ = 0"):
        broken = decoding()
        object.__setattr__(broken.sweep, "lams", (0.5, 1.0))
        Choice(broken, Rule(max_kl=1), 0)
