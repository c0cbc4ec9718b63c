"""Tokens per second of one model and of the realigned pair, beside Hugging Face torch.

    pip install -c constraints.txt -e '.[bench]'  # `make test` brings it too
    python benchmarks/decode_speed.py --write

Both sides have the same random parameters. Before any timing the script asks of each size that the
two compute the same: teacher-forced logits, greedy tokens, and the logits that were mixed while
decoding, on padded inputs; it stops if they differ. `--write` puts the tables into docs/results.

Axes: B prompts, K hypotheses, S prompt length, T new tokens, V vocabulary.
"""

import argparse
import dataclasses
import itertools
import shlex
import statistics
import sys
import time
from collections.abc import Callable

import hf_pair
import jax
import numpy as np
import speed_report
import torch

from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample, sweep_hypotheses
from dera_jax.models.language_model import Prompts, sequence_keys
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5

BATCHES = (1, 16)
LAM = 0.5
SWEEP = (0.0, 0.25, 0.5, 1.0, 2.0)
TOLERANCE = 1e-4  # between logits of the two sides; their standard deviation is 0.1 (tiny) and 1


@dataclasses.dataclass(frozen=True)
class Size:
    config: T5Config
    input_length: int
    new_tokens: int


SIZES = {
    # gin_configs/models/tiny.gin
    "tiny": Size(T5Config(4096, 192, 6, 2, 2, 32, 768, ("relu",), True), 80, 24),
    "T5 1.1 small": Size(
        T5Config(32128, 512, 6, 8, 8, 64, 1024, ("gelu", "linear"), False), 512, 64
    ),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """The reference and the aligned model on both sides, with equal parameters."""

    size: Size
    torch_models: tuple
    params: tuple

    @property
    def model(self) -> T5:
        return T5(self.size.config)

    def last(self, num_models: int) -> tuple:
        """Our aligned model and its parameters, or those of both mixed."""
        if num_models == 1:
            return self.model, self.params[-1]
        return Realigned(self.model, (self.model,)), self.params


def random_pair(size: Size) -> Pair:
    models = tuple(hf_pair.random_model(size.config, seed) for seed in (0, 1))
    params = tuple(jax.device_put(hf_pair.convert(model)) for model in models)
    return Pair(size, models, params)


def random_tokens(size: Size, batch: int) -> np.ndarray:
    """int32 [B, S] of no special id."""
    rng = np.random.default_rng(batch)
    shape = (batch, size.input_length)
    return rng.integers(2, size.config.vocab_size, shape).astype(np.int32)


def random_prompts(size: Size, batch: int) -> Prompts:
    """B prompts without padding."""
    return Prompts(random_tokens(size, batch), np.full(batch, size.input_length, np.int32))


def decode(pair: Pair, num_models: int, prompts: Prompts, lams, greedy: bool) -> np.ndarray:
    """Our side: tokens [B, K, T] of the aligned model, or of the pair at K values of λ."""
    sampling = Sampling(max_length=pair.size.new_tokens, greedy=greedy, end_ids=(-1,))
    batch = len(prompts.tokens)
    lam, numbers = sweep_hypotheses(np.asarray(lams, np.float32), 1, batch)
    keys = sequence_keys(0, np.arange(batch), numbers)
    prompts = prompts.replace(lam=None if num_models == 1 else lam)
    return np.asarray(sample(*pair.last(num_models), prompts, keys, sampling).tokens)


def decode_torch(pair: Pair, num_models: int, prompts: Prompts, greedy: bool) -> torch.Tensor:
    """The other side: tokens [B, 1 + T], the start token first."""
    settings = hf_pair.generation_settings(pair.size.new_tokens, greedy)
    return hf_pair.generate(pair.torch_models[-num_models:], prompts, LAM, settings)


def check_agreement(pair: Pair) -> float:
    """The largest difference between the two sides' logits.

    Raises:
        RuntimeError: logits differ by more than TOLERANCE, or greedy tokens differ.
    """
    size = pair.size
    lengths = np.array([size.input_length, size.input_length // 2, 3], np.int32)
    prompts = Prompts(random_tokens(size, 3), lengths)
    targets = random_tokens(size, 4)[:3, : size.new_tokens]
    decoder_inputs = np.pad(targets[:, :-1], [(0, 0), (1, 0)])  # after the start token, 0
    errors = {}
    for i, (model, params) in enumerate(zip(pair.torch_models, pair.params, strict=True)):
        ours = our_logits(pair.model, params, prompts, targets)
        theirs = hf_pair.teacher_forced(model, prompts, decoder_inputs)
        errors[f"teacher forcing, model {i}"] = float(np.abs(ours - theirs).max())
    errors["decoding, one model"] = decoding_error(pair, 1, prompts, 1.0)
    for lam in (LAM, 1.5):
        errors[f"decoding, λ = {lam}"] = decoding_error(pair, 2, prompts, lam)
    if not max(errors.values()) < TOLERANCE:
        raise RuntimeError(f"Logits of the two sides may differ by {TOLERANCE}; found {errors}.")
    return max(errors.values())


def decoding_error(pair: Pair, num_models: int, prompts: Prompts, lam: float) -> float:
    """The largest difference of logits while decoding, at the other side's greedy tokens.

    Ours are teacher-forced, so caches and masks of the logits processor are put to the test too.

    Raises:
        RuntimeError: our greedy tokens are not those.
    """
    settings = hf_pair.generation_settings(pair.size.new_tokens, greedy=True, scores=True)
    theirs = hf_pair.generate(pair.torch_models[-num_models:], prompts, lam, settings)
    tokens = theirs.sequences[:, 1:].numpy()
    lams = None if num_models == 1 else np.full((len(tokens), 1), lam, np.float32)
    ours = our_logits(*pair.last(num_models), prompts.replace(lam=lams), tokens)
    error = float(np.abs(ours - torch.stack(theirs.scores, 1).numpy()).max())
    different = np.argwhere(decode(pair, num_models, prompts, [lam], True)[:, 0] != tokens)
    if len(different):
        row, at = different[0]
        raise RuntimeError(
            f"Greedy tokens of both sides must be equal; with {num_models} models at λ = {lam} they "
            f"differ in row {row} from token {at} on (logits differ by at most {error:.1e})."
        )
    return error


def our_logits(model, params, prompts: Prompts, targets: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] that predict targets[B, T]."""
    state = model.start(params, prompts, 1, targets.shape[1])
    return np.asarray(model.teacher_forced(params, state, targets[:, None]).logits[:, 0])


def seconds(calls: dict[str, Callable], runs: int) -> dict[str, dict]:
    """Of each call: seconds of the first (with compilation) and of `runs` more.

    The calls take turns, so that a disturbance of the machine falls on all of them.
    """
    first = {name: _seconds(call) for name, call in calls.items()}
    rounds = [{name: _seconds(call) for name, call in calls.items()} for _ in range(runs)]
    return {
        name: {
            "first_s": first[name],
            "runs_s": [times[name] for times in rounds],
            "median_s": statistics.median(times[name] for times in rounds),
        }
        for name in calls
    }


def _seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_pair(pair: Pair, batch: int, greedy: bool, runs: int) -> dict[str, dict]:
    """One model and the pair on both sides."""
    prompts = random_prompts(pair.size, batch)
    return seconds(
        {
            "one": lambda: decode(pair, 1, prompts, [LAM], greedy),
            "pair": lambda: decode(pair, 2, prompts, [LAM], greedy),
            "torch_one": lambda: decode_torch(pair, 1, prompts, greedy),
            "torch_pair": lambda: decode_torch(pair, 2, prompts, greedy),
        },
        runs,
    )


def time_sweep(pair: Pair, runs: int) -> dict[str, dict]:
    """All λ of a sweep in one call, and a call for each."""
    prompts = random_prompts(pair.size, max(BATCHES))
    one_call = lambda: decode(pair, 2, prompts, SWEEP, greedy=False)
    many_calls = lambda: [decode(pair, 2, prompts, [lam], greedy=False) for lam in SWEEP]
    return seconds({"one_call": one_call, "many_calls": many_calls}, runs)


def measure(names: list[str], runs: int) -> dict:
    """Everything the report holds; prints each line as it comes."""
    threads = speed_report.available_cores()
    torch.set_num_threads(threads)
    command = shlex.join(["python", "benchmarks/decode_speed.py", *sys.argv[1:]])
    result = {"command": command, "machine": speed_report.machine(threads), "runs": runs}
    result |= {"lam": LAM, "sweep": SWEEP}
    result |= {"sizes": {}, "decodes": [], "sweeps": []}
    for name in names:
        size = SIZES[name]
        pair = random_pair(size)
        error = check_agreement(pair)
        print(f"{name}: both sides agree, logits within {error:.1e}", flush=True)
        result["sizes"][name] = dataclasses.asdict(size) | {"largest_difference": error}
        for batch, greedy in itertools.product(BATCHES, (False, True)):
            row = {
                "size": name,
                "batch": batch,
                "greedy": greedy,
                "tokens": batch * size.new_tokens,
            }
            result["decodes"].append(row | {"times": time_pair(pair, batch, greedy, runs)})
            print(speed_report.decode_row(result["decodes"][-1]), flush=True)
        tokens = max(BATCHES) * len(SWEEP) * size.new_tokens
        row = {"size": name, "batch": max(BATCHES), "tokens": tokens}
        result["sweeps"].append(row | {"times": time_sweep(pair, runs)})
        print(speed_report.sweep_row(result["sweeps"][-1]), flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each decode")
    parser.add_argument("--write", action="store_true", help="write docs/results/decode_speed.*")
    args = parser.parse_args()
    result = measure(args.sizes, args.runs)
    if args.write:
        speed_report.write(result)


if __name__ == "__main__":
    main()
