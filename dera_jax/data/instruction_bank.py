"""Defines the instructions that the tasks `…_instructed` train on, and the bank of templates made of them."""

from dera_jax.prompts import SUMMARIZE

SLOT = "{prompt}"  # is replaced by the task's own template
SHORT = (
    "briefly, {prompt}",
    "in a few words, {prompt}",
    "as short as possible, {prompt}",
)
LONG = (
    "in detail, {prompt}",
    "at length, {prompt}",
    "with all the facts, {prompt}",
)
NEUTRAL = (
    "please {prompt}",
    "in plain words, {prompt}",
    "read this and {prompt}",
)


def bank(template: str = SUMMARIZE) -> tuple[str, ...]:
    """Return a task's template without an instruction, then with each instruction before it.

    Args:
        template: the task's prompt template, with one slot {document}.
    """
    return tuple(x.replace(SLOT, template) for x in (SLOT, *NEUTRAL, *SHORT, *LONG))
