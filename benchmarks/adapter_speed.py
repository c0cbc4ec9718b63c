"""Milliseconds of a decoding step of a LoRA pair on one base, beside one model, two models and torch.

    python benchmarks/adapter_speed.py --write

The parameters are random, of SmolLM2-135M's sizes (or --layers fewer). All cases are timed in turn, so
that a change of the machine's speed meets all of them. Before any timing the script checks that the
pair on one base and the two full models have the same greedy tokens. Memory is counted from shapes and
from the compiled program. `--write` puts the tables into docs/results.

Axes: B prompts, K hypotheses, S prompt length, T new tokens.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import speed_report
import torch
import transformers

from dera_jax.decoding.realign import Realigned, RealignedAdapters
from dera_jax.models import lora
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree
from dera_jax.models.llama_config import LlamaConfig
from dera_jax.models.llama_lm import Llama

CONFIG = LlamaConfig(
    49152, 576, 9, 3, 30, 64, 1536, rope_base=100_000.0, logits_via_embedding=True, end_ids=(2,)
)
ROWS = ((1, 1), (16, 1), (8, 10))  # (B, K)
PROMPT, NEW, RANK, LAM = 128, 32, 8, 0.5
ONE, PAIR, TWO, TORCH = "one model", "pair on one base", "two full models", "transformers and torch"

PAGE = """# Decoding speed of a LoRA pair on one base

Written by `{command}` on {machine}.

Median milliseconds of a decoding step (B prompts of 128 tokens, K hypotheses of each), all cases timed
in turn; the parameters are random, of SmolLM2-135M's sizes, float32. The memory is of the last row.

{text}"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with parameters, and λ of its prompts."""

    model: LanguageModel
    params: PyTree
    lam: float | None


def cases(config: LlamaConfig) -> dict[str, Case]:
    one = Llama(config)
    base = one.init(jax.random.key(0))
    adapters = [lora.new_adapter(one, lora.LoraConfig(RANK, 16.0, seed=i)) for i in (1, 2)]
    noise = lambda i, x: x + 0.02 * jax.random.normal(jax.random.key(i), x.shape)
    adapters = [jax.tree.map(lambda x, i=i: noise(i, x), a) for i, a in enumerate(adapters)]
    together = dataclasses.replace(one, components=2)
    merged = tuple(lora.merge(base, a) for a in adapters)
    return {
        ONE: Case(one, base, None),
        PAIR: Case(RealignedAdapters(together), lora.attach(base, *adapters), LAM),
        TWO: Case(Realigned(one, (one,)), merged, LAM),
    }


def prompts_of(config: LlamaConfig, batch: int, lam: float | None) -> Prompts:
    tokens = np.random.default_rng(0).integers(5, config.vocab_size, (batch, PROMPT))
    lam = None if lam is None else np.full((batch, 1), lam, np.float32)
    return Prompts(tokens.astype(np.int32), np.full(batch, PROMPT, np.int32), lam)


def stepper(case: Case, config: LlamaConfig, rows: tuple[int, int]) -> Callable[[], np.ndarray]:
    """Returns a call that decodes NEW greedy tokens after a prefill that is not timed."""
    model, prompts = case.model, prompts_of(config, rows[0], case.lam)
    state = jax.jit(lambda p, x: model.start(p, x, rows[1], NEW))(case.params, prompts)

    @jax.jit
    def decode(params, state):
        def step(carry, _):
            state, tokens = carry
            output, state = model.step(params, state, tokens)
            tokens = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
            return (state, tokens), tokens

        first = jnp.broadcast_to(state.first_token[:, None], rows)
        return jax.lax.scan(step, (state, first), length=NEW)[1]

    return lambda: np.asarray(decode(case.params, state))


def torch_stepper(config: LlamaConfig, rows: tuple[int, int]) -> Callable[[], np.ndarray]:
    """The same with transformers: two full models, whose logits are mixed at every step.

    Each of the B·K hypotheses has a cache of its own with the prompt, as in `generate`.
    """
    settings = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.emb_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=True,
    )
    networks = [transformers.LlamaForCausalLM(settings).eval() for _ in range(2)]
    repeated = np.repeat(prompts_of(config, rows[0], None).tokens, rows[1], axis=0)
    ids = torch.tensor(repeated, dtype=torch.long)
    with torch.inference_mode():
        caches = [x(ids[:, :-1], use_cache=True).past_key_values for x in networks]

    def decode() -> np.ndarray:
        tokens, last = [], ids[:, -1:]
        with torch.inference_mode():
            for _ in range(NEW):
                logits = [
                    x(last, past_key_values=cache, use_cache=True).logits[:, -1]
                    for x, cache in zip(networks, caches, strict=True)
                ]
                last = ((1 - LAM) * logits[0] + LAM * logits[1]).argmax(-1, keepdim=True)
                tokens.append(last)
            for cache in caches:
                cache.crop(-NEW)
        return torch.cat(tokens, dim=1).numpy()

    return decode


def measure(config: LlamaConfig, rows: tuple[int, int], runs: int) -> dict[str, float]:
    """Returns the median milliseconds of a step of each case, timed in turn."""
    calls = {name: stepper(case, config, rows) for name, case in cases(config).items()}
    calls[TORCH] = torch_stepper(config, rows)
    tokens = {name: call() for name, call in calls.items()}  # compiles
    if not np.array_equal(tokens[PAIR], tokens[TWO]):
        raise RuntimeError(f"the pair on one base has other tokens than two models at {rows}")
    times = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) / NEW * 1e3)
    return {name: statistics.median(x) for name, x in times.items()}


def memory(config: LlamaConfig, rows: tuple[int, int]) -> dict[str, dict[str, int]]:
    """Returns bytes of parameters, of the decoding state and of a step's temporary arrays."""
    found = {}
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    for name, case in cases(config).items():
        prompts, model = prompts_of(config, rows[0], case.lam), case.model
        start = lambda p, x, model=model: model.start(p, x, rows[1], NEW)
        state = jax.eval_shape(start, case.params, prompts)
        tokens = jax.ShapeDtypeStruct(rows, jnp.int32)
        compiled = jax.jit(model.step, donate_argnums=1).lower(case.params, state, tokens).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        found[name] = {"parameters": size(case.params), "state": size(state), "step": temporary}
    return found


def time_table(times: dict[tuple[int, int], dict[str, float]]) -> str:
    names = f"{ONE} | {PAIR} | {TWO} | {TORCH}"
    lines = [f"| B × K | {names} | pair / one | two / pair | torch / pair |", "|---" * 8 + "|"]
    for (batch, hypotheses), found in times.items():
        cells = [f"{found[x]:.1f}" for x in (ONE, PAIR, TWO, TORCH)]
        ratios = [found[PAIR] / found[ONE], found[TWO] / found[PAIR], found[TORCH] / found[PAIR]]
        cells += [f"{x:.2f}" for x in ratios]
        lines.append(f"| {batch} × {hypotheses} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_table(found: dict[str, dict[str, int]], logits: int) -> str:
    """Formats the memory of each case, and the bound of a pair: one model, a second state and logits, 5 %."""
    lines = ["| | parameters | state | temporary arrays of a step | sum |", "|---" * 5 + "|"]
    for name, sizes in found.items():
        cells = (*sizes.values(), sum(sizes.values()))
        lines.append(f"| {name} | " + " | ".join(f"{x / 2**20:,.0f} MiB" for x in cells) + " |")
    one, pair = found[ONE], found[PAIR]
    bound = 1.05 * (sum(one.values()) + one["state"] + logits)
    more = pair["parameters"] / one["parameters"]
    return "\n".join(lines) + (
        f"\n\nParameters of the pair: {more:.3f} × one model. Predicted: at most one model + its state + its "
        f"logits + 5 % = {bound / 2**20:,.0f} MiB; measured: {sum(pair.values()) / 2**20:,.0f} MiB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="timed calls of each case")
    parser.add_argument("--layers", type=int, default=CONFIG.num_layers)
    parser.add_argument("--write", action="store_true", help="write docs/results/adapter_speed.md")
    options = parser.parse_args()
    config = dataclasses.replace(CONFIG, num_layers=options.layers)
    times = {rows: measure(config, rows, options.runs) for rows in ROWS}
    logits = 4 * config.vocab_size * ROWS[-1][0] * ROWS[-1][1]
    text = f"{time_table(times)}\n\n{memory_table(memory(config, ROWS[-1]), logits)}\n"
    print(text)
    if options.write:
        speed_report.write_page("adapter_speed.md", PAGE, text=text)


if __name__ == "__main__":
    main()
