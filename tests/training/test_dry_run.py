"""What a compiled call is said to need, against sizes counted by hand."""

import functools

import jax
import jax.numpy as jnp

from dera_jax.training.dry_run import GIB, ProgramCost, format_costs, program_cost


def test_memory_is_that_of_arguments_and_results_with_updates_in_place_counted_once():
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, x):
        return state + jnp.sum(x), 2 * x

    state = jax.ShapeDtypeStruct((1000,), jnp.float32)
    x = jax.ShapeDtypeStruct((50,), jnp.float32)
    found = program_cost("step", {"net": {"a": state, "b": x}}, 7, step, state, x)
    # The state, x and 2x; results come with a table of pointers.
    assert 4 * (1000 + 50 + 50) <= found.kept <= 4 * (1000 + 50 + 50) + 64
    assert found.parameters == {"net": 1050} and found.tokens == 7


def test_a_need_is_told_in_words():
    said = format_costs([ProgramCost("step", {"net": 1234}, 5678, GIB, GIB // 2, "cpu")])
    assert said.splitlines() == [
        "step: at most 5,678 tokens processed per call",
        "  parameters: net 1,234",
        (
            "  memory per device (cpu): 1.00 GiB for arguments and results, "
            "plus 0.50 GiB of temporary buffers"
        ),
    ]
