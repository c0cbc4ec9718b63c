"""An invalid macro ends a run in one sentence, before any model is read or folder made."""

import pytest

from dera_jax import main
from dera_jax.checkpoints import recognise

PAIR = {"REFERENCE": "'no/model'", "ALIGNED": "'no/model'", "TASK": "'newswire'"}
ONE = {"REFERENCE": "'no/model'", "TASK": "'newswire'"}
SFT = {"INITIAL_MODEL": "'no/model'", "TASK": "'newswire'"}
RUNS = {
    "sample": (["runs/sample"], PAIR),
    "sample alone": (["runs/sample"], ONE),
    "beam_search alone": (["runs/beam_search", "rewards/faithfulness"], ONE),
    "sweep": (["runs/sweep"], PAIR | {"LOW": "5", "HIGH": "8"}),
    "best_of_n": (["runs/best_of_n", "rewards/words"], PAIR | {"AT_MOST": "9"}),
    "choose": (["runs/choose", "rewards/words"], PAIR | {"AT_MOST": "9"}),
    "lengths": (["runs/lengths"], ONE),
    "sft": (["runs/sft"], SFT),
    "ppo": (["runs/ppo"], ONE),
    "warm_start": (["runs/warm_start"], ONE | {"LOW": "5", "HIGH": "8", "BETA": "0.1"}),
    "beam_search": (["runs/beam_search", "rewards/faithfulness"], PAIR),
    "evolution": (["runs/evolution", "rewards/faithfulness", "mutators/none"], PAIR),
    "exact": (["experiments/exact"], {}),
    "length": (["experiments/length_reward/newswire"], {}),
    "two": (["experiments/two_rewards/newswire"], {}),
}
INFINITE = "1e400"
REFUSED = [
    ("sweep", "LAMBDAS", "0.5", "Sweep.lams must be .*; found 0.5"),
    ("sweep", "LAMBDAS", "()", r"Sweep.lams must be a non-empty tuple.*; found \(\)\."),
    ("sweep", "LAMBDAS", "(0.0, 1.0, 0)", "Sweep.lams must be different values; found 0 twice"),
    ("sweep", "LAMBDAS", f"(0.0, {INFINITE})", "Sweep.lams .*finite number.*inf"),
    ("sweep", "LAMBDAS", "('0.5',)", "Sweep.lams must be .*; found \\('0.5',\\)"),
    ("sample alone", "LAMBDAS", "(0.5,)", r"PairSweep.aligned must be a path, .*found None and"),
    ("beam_search alone", "LAMBDA", "0.5", "SamplingMethod.lam = 0.5 needs an aligned model"),
    ("sweep", "SAMPLES", "0", "Sweep.num_samples must be an integer of at least 1; found 0"),
    ("sweep", "SAMPLES", "'4'", "Sweep.num_samples must be .*; found '4'"),
    ("sweep", "GREEDY", "'no'", "Sampling.greedy must be .*; found 'no'"),
    ("sweep", "GREEDY", "1", "Sampling.greedy must be .*; found 1"),
    *(
        ("sweep", "TEMPERATURE", x, "Sampling.temperature must be .*; found")
        for x in ("'0.5'", "None", "0", "-1", INFINITE)
    ),
    ("sample", "TOP_K", "2.5", "Sampling.top_k must be .*; found 2.5"),
    ("sample", "TOP_K", "0", "Sampling.top_k must be an integer of at least 1"),
    ("sample", "TOP_P", "0", r"Sampling.top_p must be a finite number in \(0, 1\]"),
    ("sample", "TOP_P", "1.5", r"Sampling.top_p must be a finite number in \(0, 1\]"),
    ("sample", "MAX_LENGTH", "0", "Sampling.max_length must be an integer of at least 1"),
    ("sample", "sampling.Sampling.min_length", "33", r"min_length must be .*\[0, 24\]; found 33"),
    ("sample", "sampling.Sampling.end_ids", "(-5,)", "end_ids must be .*at least -1.*; found .-5"),
    ("sample", "sampling.Sampling.end_ids", "(1.5,)", "end_ids must be .*; found .1.5"),
    ("sample", "sampling.Sampling.end_ids", "1", "end_ids must be .*; found 1"),
    ("sample", "TEMPLATE_FROM", "2", "template_from must be 'reference', the number .*; found 2"),
    ("beam_search", "TEMPLATE_FROM", "'other'", "template_from must be .*; found 'other'"),
    ("sample", "DOCUMENTS", "-1", "Split.documents must be an integer of at least 1, or None"),
    ("sample", "DOCUMENTS", "0", "Split.documents must be an integer of at least 1, or None"),
    ("sample", "INPUTS", "-192", "Split.inputs must be an integer of at least 1; found -192"),
    ("sample", "INPUTS", "'192'", "Split.inputs must be .*; found '192'"),
    ("sample", "BATCH_SIZE", "-3", "Sweep.batch_size must be an integer of at least 1"),
    ("sample", "BATCH_SIZE", "0", "Sweep.batch_size must be an integer of at least 1"),
    ("sample", "SEED", "'a'", "Sweep.seed must be .*; found 'a'"),
    ("sample", "SEED", "-1", "Sweep.seed must be an integer in"),
    ("sample", "REWARD", "'length'", "Sweep.reward must be .*gin_configs/rewards.*'length'"),
    ("sample", "TASK", "'newswir'", "unknown task 'newswir'; registered tasks: .*newswire"),
    ("sample", "SPLIT", "'tests'", "task 'newswire' has no split 'tests', only"),
    ("sweep", "LOW", "9", "LengthInRange needs 0 <= low <= high; found low 9, high 8"),
    ("sweep", "LOW", "-1", "LengthInRange.low must be an integer of at least 0; found -1"),
    ("sweep", "LOW", "5.0", "LengthInRange.low must be .*; found 5.0"),
    ("sweep", "MAX_LENGTH", "9", "max_length must be at least 10 for the reward LengthInRange"),
    ("best_of_n", "SIZES", "(0,)", "BestOf.sizes .*an integer of at least 1"),
    ("choose", "LAMBDAS", "(0.0,)", "Sweep.lams must be a tuple or list of at least 2"),
    ("choose", "choose.Choice.rounds", "-1", "Choice.rounds must be an integer of at least 0"),
    ("lengths", "DOCUMENTS", "0", "Split.documents must be"),
    ("lengths", "MAX_LENGTH", "0", "LengthSurvey.max_length must be"),
    ("lengths", "SEED", "0.5", "LengthSurvey.seed must be"),
    ("sft", "EVAL_PERIOD", "0", "Validation.period must be an integer of at least 1"),
    ("sft", "SAVE_STEPS", "0", "Saving.steps must be an integer of at least 1"),
    ("sft", "SAVE_MINUTES", "-1", "Saving.minutes must be a finite number of at least 0"),
    ("sft", "EVAL_EXAMPLES", "0", "Validation.examples must be an integer of at least 1"),
    ("sft", "DECODED_EXAMPLES", "-1", "Validation.decoded must be an integer of at least 0"),
    ("sft", "PATIENCE", "0", "Validation.patience must be an integer of at least 1, or None"),
    ("sft", "LEARNING_RATE", "-1", "cosine.peak must be a finite number above 0; found -1"),
    ("sft", "LEARNING_RATE", "0", "cosine.peak must be a finite number above 0; found 0"),
    ("sft", "WARMUP", "1", r"warmup.fraction must be a finite number in \[0, 1\); found 1"),
    ("ppo", "POLICY_WARMUP", "'a'", "warmup.fraction must be .*; found 'a'"),
    ("sft", "WARMUP_STEPS", "1000000", "cosine.warmup_steps must be below total_steps"),
    ("sft", "LABEL_SMOOTHING", "2", r"Loss.label_smoothing must be a finite number in \[0, 1\)"),
    ("sft", "BATCH_SIZE", "0", "Data.batch_size must be an integer of at least 1"),
    ("sft", "INPUTS", "0", "Data.inputs must be an integer of at least 1"),
    ("sft", "TARGETS", "-1", "Data.targets must be an integer of at least 1"),
    ("sft", "STEPS", "0", "warmup.steps must be an integer of at least 1"),
    ("sft", "TASK", "'newswir'", "unknown task 'newswir'"),
    ("ppo", "PPO_STEPS", "0", "PPOTraining.steps must be an integer of at least 1"),
    ("ppo", "EPOCHS", "0", "Updates.epochs must be an integer of at least 1"),
    ("ppo", "ROLLOUTS", "0", "Updates.rollouts must be an integer of at least 1"),
    ("ppo", "MINIBATCHES", "0", "Updates.minibatches must be an integer of at least 1"),
    ("ppo", "MINIBATCHES", "5", r"batch of 64 documents must be divisible by Updates.minibatches"),
    ("ppo", "BETA", "0", "Objective.beta must be a finite number above 0; found 0"),
    ("ppo", "ppo.Updates.clip", "-0.2", "Updates.clip must be a finite number above 0"),
    ("ppo", "ppo.Updates.decay", "1.5", r"Updates.decay must be a finite number in \[0, 1\]"),
    ("ppo", "policy/optimizers.adamw.clip_norm", "0", "adamw.clip_norm must be"),
    ("ppo", "value/optimizers.adamw.weight_decay", "-1", "adamw.weight_decay must be"),
    ("ppo", "value/optimizers.constant.warmup_steps", "99999", "the warm-up .* has 99999 steps"),
    ("ppo", "TASK", "'newswir'", "unknown task 'newswir'"),
    ("ppo", "REWARD", "'length'", "Objective.reward must be .*gin_configs/rewards.*'length'"),
    ("warm_start", "ROLLOUTS", "0", "WarmStart.rollouts must be an integer of at least 1"),
    ("beam_search", "MAX_LENGTH", "8", r"Search.lookahead must be an integer in \[0, 8\), below"),
    ("beam_search", "BEAMS", "0", "Search.beams must be an integer of at least 1"),
    ("beam_search", "TOP_K", "1", "Search.top_k must be an integer of at least 2"),
    ("beam_search", "PERIOD", "25", r"Search.period must be an integer in \[1, 24\]"),
    ("beam_search", "REWARD_WEIGHT", "-1", "Search.reward_weight must be"),
    ("beam_search", "LENGTH_PENALTY", INFINITE, "Search.length_penalty must be"),
    ("beam_search", "LAMBDA", "'1'", "SamplingMethod.lam must be .*; found '1'"),
    ("beam_search", "EVAL_BATCH_SIZE", "0", "SearchExperiment.batch_size must be"),
    ("evolution", "POPULATION", "1", "Evolution.population must be an integer of at least 2"),
    ("evolution", "SURVIVORS", "9", "Evolution.survivors must be an integer in .* below the pop"),
    ("evolution", "REPLACEMENT_PERIOD", "0", "Evolution.period must be"),
    ("evolution", "GENERATIONS", "0", "Evolution.generations must be"),
    ("evolution", "MUTATOR", "'none'", "EvolutionMethod.mutator must be .*; found 'none'"),
    ("exact", "exact.ExactWorlds.lams", "(0.0,)", "ExactWorlds.lams .*finite number above 0"),
    ("length", "LAMBDAS", "0.5", "LengthReward.lams must be"),
    ("two", "GRID", "(0.0, 0.0)", "TwoRewards.grid must be different values; found 0.0 twice"),
]


@pytest.mark.parametrize(
    ("run", "macro", "value", "message"),
    REFUSED,
    ids=[f"{run}: {macro}={value}" for run, macro, value, _ in REFUSED],
)
def test_an_invalid_macro_is_refused(run, macro, value, message, tmp_path, monkeypatch):
    reading = lambda path: pytest.fail(f"{path} was read before the settings were checked")
    monkeypatch.setattr(recognise, "open_folder", reading)
    files, bindings = RUNS[run]
    out = tmp_path / "out"
    given = {"MODEL_DIR": f"'{out}'"} | bindings | {macro: value}
    arguments = [f"--gin_file=gin_configs/{file}.gin" for file in files]
    with pytest.raises(SystemExit, match=message) as refused:
        main.main([*arguments, *(f"--gin.{name}={x}" for name, x in given.items())])
    assert f"{macro} = " in str(refused.value), "names the binding and its value"
    assert not out.exists()
