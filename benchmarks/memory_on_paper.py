"""Bytes of a pair of 7 billion parameters that decodes after a prompt of 2,048 tokens, counted from shapes.

    python benchmarks/memory_on_paper.py --write

Nothing is allocated: parameters and decoding state are traced (`jax.eval_shape`), and the largest
temporary arrays, the scores of a chunk of the prefill and the logits of a step, are added by hand. The
prefill holds its keys and values twice, once padded to whole chunks. Beside this count stands what XLA's
compiler for this machine needs for the same programs. `--write` puts the table into docs/results.
"""

import argparse
import dataclasses
import math
import shlex
import sys

import jax
import jax.numpy as jnp
import speed_report

from dera_jax.decoding.realign import Realigned, RealignedAdapters
from dera_jax.models import lora
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree
from dera_jax.models.llama_config import LlamaConfig
from dera_jax.models.llama_lm import PREFILL_CHUNK, Llama

PROMPT, NEW, BATCH, SAMPLES, LIMIT = 2048, 256, 4, 4, 80e9
SIZES = {
    "Llama 2 7B": LlamaConfig(32_000, 4096, 32, 32, 32, 128, 11_008, dtype="bfloat16", end_ids=(2,)),
    "Mistral 7B (Zephyr)": LlamaConfig(
        32_000, 4096, 32, 8, 32, 128, 14_336, layer_windows=(4096,) * 32, dtype="bfloat16", end_ids=(2,)
    ),
}  # fmt: skip

PAGE = """# Memory of a pair of 7 billion parameters, on paper

Written by `{command}`: counted from the shapes of the program's arrays in bfloat16 (logits and scores float32), nothing
was allocated and no accelerator was at hand.

{batch} prompts of {prompt:,} tokens, {samples} samples of each, {new} new tokens; GB are 10⁹ bytes.

{table}

"Prefill" is the larger of two moments: while the prompts' keys and values exist twice, with the scores of one chunk of
{chunk} tokens, and a decoding step, with its logits. "Compiled" is what XLA's compiler for a {device} needs
for all temporary arrays of the same two programs; the count on paper is above it. All sums are below {limit:.0f} GB.
"""


def bytes_of(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def pairs(config: LlamaConfig) -> dict[str, tuple[LanguageModel, PyTree]]:
    """Returns models and shapes of parameters: two full models, and two adapters of rank 16 on one base."""
    one = Llama(config)
    params = jax.eval_shape(one.init, jax.random.key(0))
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    make = lambda i: lora.new_adapter(one, lora.LoraConfig(16, 32.0, seed=i))
    together = RealignedAdapters(dataclasses.replace(one, components=2))
    attached = jax.eval_shape(lambda p: lora.attach(p, make(0), make(1)), half)
    return {
        "two full models": (Realigned(one, (one,)), (half, half)),
        "two adapters on one base": (together, attached),
    }


def row(name: str, config: LlamaConfig, kind: str, model: LanguageModel, params: PyTree) -> list:
    tokens = jax.ShapeDtypeStruct((BATCH, PROMPT), jnp.int32)
    lengths = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    prompts = Prompts(tokens, lengths, jax.ShapeDtypeStruct((BATCH, 1), jnp.float32))
    start = lambda p, x: model.start(p, x, SAMPLES, NEW)
    state = jax.eval_shape(start, params, prompts)
    kept, components = bytes_of(state), 2
    shared = 2 * components * BATCH * PROMPT * config.num_layers * config.num_kv_heads
    shared *= config.head_dim * 2
    scores = 2 * 4 * components * BATCH * config.num_heads * PREFILL_CHUNK * PROMPT
    logits = 4 * (components + 1) * BATCH * SAMPLES * config.vocab_size
    highest = max(shared + scores, logits)
    total = bytes_of(params) + kept + highest
    if total > LIMIT:
        raise RuntimeError(f"{name}, {kind}: {total / 1e9:.1f} GB do not fit {LIMIT / 1e9:.0f} GB")
    fed = jax.ShapeDtypeStruct((BATCH, SAMPLES), jnp.int32)
    prefill = jax.jit(start).lower(params, prompts)
    step = jax.jit(model.step, donate_argnums=1).lower(params, state, fed)
    temporary = max(x.compile().memory_analysis().temp_size_in_bytes for x in (prefill, step))
    if temporary > highest:
        raise RuntimeError(
            f"{name}, {kind}: compiled, {temporary / 1e9:.1f} GB, is above the count on paper"
        )
    sizes = (bytes_of(params), kept, highest, total, temporary)
    return [name, kind, *(f"{x / 1e9:.1f}" for x in sizes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/memory_7b.md")
    options = parser.parse_args()
    header = [
        "",
        "pair",
        "parameters, GB",
        "decoding state, GB",
        "prefill, GB",
        "sum, GB",
        "compiled, GB",
    ]
    found = [row(n, c, k, *x) for n, c in SIZES.items() for k, x in pairs(c).items()]
    table = "\n".join("| " + " | ".join(x) + " |" for x in [header, ["---"] * 7, *found])
    print(table)
    if options.write:
        page = PAGE.format(
            command=shlex.join(["python", *sys.argv]), batch=BATCH, prompt=PROMPT, samples=SAMPLES,
            new=NEW, table=table, chunk=PREFILL_CHUNK, limit=LIMIT / 1e9,
            device=jax.devices()[0].device_kind,
        )  # fmt: skip
        (speed_report.RESULTS / "memory_7b.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
