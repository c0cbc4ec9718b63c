"""The tables of `decode_speed.py` as Markdown, and the machine they were measured on."""

import os
import platform
import shlex
import statistics
import sys
from importlib import metadata
from pathlib import Path

import jax

from dera_jax.files import json_files

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers")

TEXT = """# Decoding speed: one model, the realigned pair, and Hugging Face torch

Written by `{command}` (docs/results/decode_speed.json holds every single run).

Machine: {cpu}, {cores} cores, {threads} threads for each library, no accelerator, float32.
Versions: {versions}. Load average at the start: {load:.2f}.

Random parameters, the same on both sides: only the time means anything, not the text. Before the
timing each size had to agree in teacher-forced logits, in greedy tokens and in the logits mixed
while decoding, on padded inputs at two λ; the largest differences of logits were {errors}.

## One model and the pair

{sizes}

Tokens per second, encoder and all: new tokens of the whole batch ÷ median seconds of {runs} runs,
taken in turns. The torch pair is `generate` of the aligned model with a logits processor that runs
the reference with a cache of its own. "Pair ÷ one" is how many times longer the pair takes than one
model. "First call" is the extra time of our pair's first call, compilation for the most part. Ours
also returns each token's log-probability under the mixture and under both models, and the KL;
`generate` returns tokens only. The widest spread of a decode's runs, (max − min) ÷ median, was
{spread:.0%}.

| size | batch | draw | ours, one | ours, pair | pair ÷ one | torch, one | torch, pair | pair ÷ one | our pair ÷ torch pair | first call |
|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|
{decodes}

## All λ of a sweep in one call

{batch} documents at λ = {lams}, sampled: the five λ as hypotheses of one call, which share the
encoder's work and the draws, beside five calls of one λ each.

| size | one call | five calls | times faster |
|---|---:|---:|---:|
{sweeps}
"""


def available_cores() -> int:
    """Cores this process may use (`taskset` narrows them); XLA takes as many threads."""
    return len(os.sched_getaffinity(0))


def machine(threads: int) -> dict:
    """What the numbers depend on besides the code."""
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def write_page(name: str, page: str, **fields: object) -> None:
    """Writes a page of docs/results whose text has the slots {command}, {machine} and those of `fields`."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    text = page.format(command=command, machine=described(os.cpu_count()), **fields)
    (RESULTS / name).write_text(text, encoding="utf-8")


def described(threads: int) -> str:
    """Returns `machine` in words, with the accelerator in use if there is one."""
    found = machine(threads)
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    device = jax.devices()[0]
    accelerator = "no accelerator" if device.platform == "cpu" else device.device_kind
    return f"{found['cpu']}, {found['cores']} cores, {accelerator}; {packages}"


def decode_row(decode: dict) -> str:
    """One line of the first table."""
    times = decode["times"]
    median = {name: x["median_s"] for name, x in times.items()}
    rate = {name: f"{decode['tokens'] / x:,.0f}" for name, x in median.items()}
    compiling = times["pair"]["first_s"] - median["pair"]
    cells = [
        decode["size"],
        str(decode["batch"]),
        "greedy" if decode["greedy"] else "sampled",
        rate["one"],
        rate["pair"],
        f"{median['pair'] / median['one']:.2f}",
        rate["torch_one"],
        rate["torch_pair"],
        f"{median['torch_pair'] / median['torch_one']:.2f}",
        f"{median['torch_pair'] / median['pair']:.2f}",
        f"{compiling:.1f} s",
    ]
    return _row(cells)


def sweep_row(sweep: dict) -> str:
    """One line of the second table."""
    one, many = (sweep["times"][name]["median_s"] for name in ("one_call", "many_calls"))
    rates = (f"{sweep['tokens'] / x:,.0f} tokens/s ({x:.2f} s)" for x in (one, many))
    return _row([sweep["size"], *rates, f"{many / one:.2f}"])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _size_line(name: str, size: dict) -> str:
    config = size["config"]
    return (
        f"- {name}: vocabulary {config['vocab_size']}, width {config['emb_dim']}, "
        f"{config['num_heads']} heads of {config['head_dim']}, mlp {config['mlp_dim']} "
        f"({' × '.join(config['mlp_activations'])}), {config['num_encoder_layers']} + "
        f"{config['num_decoder_layers']} layers, "
        f"{'tied' if config['logits_via_embedding'] else 'untied'}; "
        f"{size['input_length']} tokens in, {size['new_tokens']} new ones (no end token)."
    )


def _spread(decode: dict) -> float:
    runs = [x["runs_s"] for x in decode["times"].values()]
    return max((max(x) - min(x)) / statistics.median(x) for x in runs)


def markdown(result: dict) -> str:
    """The whole page for a result of `decode_speed.measure`."""
    machine, sizes = result["machine"], result["sizes"]
    errors = (f"{size['largest_difference']:.1e} ({name})" for name, size in sizes.items())
    return TEXT.format(
        command=result["command"],
        **{name: machine[name] for name in ("cpu", "cores", "threads", "load")},
        versions=", ".join(f"{k} {v}" for k, v in machine["packages"].items()),
        errors=" and ".join(errors),
        sizes="\n".join(_size_line(name, size) for name, size in sizes.items()),
        runs=result["runs"],
        spread=max(_spread(x) for x in result["decodes"]),
        decodes="\n".join(decode_row(x) for x in result["decodes"]),
        batch=result["sweeps"][0]["batch"],
        lams=", ".join(f"{x:g}" for x in result["sweep"]),
        sweeps="\n".join(sweep_row(x) for x in result["sweeps"]),
    )


def write(result: dict) -> None:
    """docs/results/decode_speed.json and .md."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    json_files.write(RESULTS / "decode_speed.json", result)
    (RESULTS / "decode_speed.md").write_text(markdown(result))
