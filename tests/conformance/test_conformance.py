"""Every decoding method keeps the same promises with every model."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from tests.conformance import table
from tests.conformance.table import (
    ENDLESS,
    ENDS,
    METHODS,
    MODELS,
    REWARDED,
    SINGLE,
    Setting,
    decode,
)

every_method = pytest.mark.parametrize("method", METHODS)
# A pair runs its models through every method, so the single networks are left to `make evidence-conformance`.
MARKS = {
    "realigned t5": pytest.mark.slow,
    "t5": pytest.mark.evidence,
    "llama": pytest.mark.evidence,
}
some_slow = lambda names: [pytest.param(name, marks=MARKS.get(name, ())) for name in names]
every_model = pytest.mark.parametrize("name", some_slow(MODELS))
every_single_model = pytest.mark.parametrize("name", some_slow(SINGLE))


def assert_same(found: table.Found, expected: table.Found, exact: bool = True) -> None:
    """Equal sequences; values that are equal too, or nearly so."""
    for field in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), field)
    for name, x in found.values.items():
        if exact:
            np.testing.assert_array_equal(x, expected.values[name], name)
        else:
            np.testing.assert_allclose(x, expected.values[name], atol=1e-4, err_msg=name)


@contextlib.contextmanager
def compilations():
    """Programs that XLA compiles meanwhile, one entry each."""
    programs = []

    def note(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def assert_rows(found: table.Found, rows: tuple[int, ...], together: table.Found) -> None:
    """The prompts found are those of `rows` among `together`."""
    pick = lambda x: x[list(rows)]
    expected = dataclasses.replace(
        together,
        tokens=pick(together.tokens),
        lengths=pick(together.lengths),
        finished=pick(together.finished),
        values={name: pick(x) for name, x in together.values.items()},
    )
    assert_same(found, expected, exact=False)


@every_model
@every_method
def test_a_prompt_is_decoded_alike_whatever_is_beside_it(method, name):
    for rows in ((2, 0, 1), (1, 1, 1)):
        assert_rows(decode(method, name, Setting(rows)), rows, decode(method, name))


@every_single_model
@every_method
def test_a_prompt_is_decoded_as_it_is_alone(method, name):
    """And in a wider array."""
    for i in range(3):
        alone = decode(method, name, Setting((i,), width=table.OTHER_WIDTH))
        assert_rows(alone, (i,), decode(method, name))


@every_model
@every_method
def test_what_is_after_a_prompt_changes_nothing(method, name):
    for padding in (7, -1):
        assert_same(decode(method, name, Setting(padding=padding)), decode(method, name))


@every_single_model
@pytest.mark.parametrize("method", REWARDED)
def test_a_compiled_reward_is_the_same_reward_in_python(method, name):
    assert_same(decode(method, name, Setting(on_host=True)), decode(method, name), exact=False)


def assert_ends(found: table.Found, ends: tuple[int, ...]) -> None:
    """Some sequences end, at an end id and at their first; the others are as long as can be."""
    place, length = np.arange(table.T), found.lengths[..., None]
    is_end = np.isin(found.tokens, ends) & (place < length)
    np.testing.assert_array_equal(is_end, found.finished[..., None] & (place == length - 1))
    assert not np.any(found.tokens[np.broadcast_to(place >= length, found.tokens.shape)])
    assert set(np.unique(found.lengths[~found.finished])) <= {0, table.T}
    assert found.finished.any()


@pytest.mark.parametrize("ends", [ENDS, (0, -1)])
@every_model
@every_method
def test_end_tokens_end_sequences_and_stand_nowhere_else(method, name, ends):
    assert_ends(decode(method, name, Setting(ends=ends)), ends)


@every_method
def test_one_end_token_alone(method):
    """Another program, since the number of end ids is a shape; it does not depend on the model."""
    assert_ends(decode(method, "tabular", Setting(ends=(0,))), (0,))


@every_model
@pytest.mark.parametrize("method", ["sample", "greedy"])
def test_a_sequence_ends_at_its_first_end_token(method, name):
    endless = decode(method, name, Setting(ends=ENDLESS)).tokens
    for ends in (ENDS, (0, -1)):
        found = decode(method, name, Setting(ends=ends))
        is_end = np.isin(endless, ends)
        length = np.where(is_end.any(-1), is_end.argmax(-1) + 1, table.T)
        np.testing.assert_array_equal(found.lengths, length)
        kept = np.where(np.arange(table.T) < length[..., None], endless, 0)
        np.testing.assert_array_equal(found.tokens, kept)


@every_model
@every_method
def test_a_width_is_compiled_once(method, name):
    """Other prompts, λ and end ids compile nothing at all, nor do those of another width again."""
    settings = [Setting()]
    if name in SINGLE:
        settings.append(Setting((0,), width=table.OTHER_WIDTH))
    for setting in settings:
        other = dataclasses.replace(setting, rows=(2, 2, 1)[: len(setting.rows)], ends=(0, 2))
        with compilations() as programs:
            table.compute(method, name, setting)  # if no test did before
            done = len(programs)
            table.compute(method, name, dataclasses.replace(other, lam=(-1.0, 0.0)))
        assert len(programs) == done


def test_compilations_are_seen():
    with compilations() as programs:
        jax.jit(lambda x: x + 1)(1)
    assert programs


@every_model
@every_method
def test_tokens_fed_are_counted(method, name):
    for setting in [Setting(ends=ENDLESS), Setting()][: 2 if method in ("sample", "greedy") else 1]:
        found = decode(method, name, setting)
        np.testing.assert_array_equal(
            found.fed, np.broadcast_to(found.expected_fed, found.fed.shape)
        )


@every_single_model
@every_method
def test_at_λ_0_and_1_the_mixture_is_a_single_model(method, name):
    for aligned in (False, True):
        lam = (float(aligned),) * 2
        mixture = decode(method, f"realigned {name}", Setting(lam=lam, lam_step=0.0))
        assert_same(mixture, decode(method, name, Setting(aligned=aligned)), exact=False)
    reference, aligned = (decode(method, name, Setting(aligned=x)) for x in (False, True))
    assert np.any(reference.tokens != aligned.tokens)
