"""The sampler: what it draws, what it reports, what it costs, and what it must not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding import sampling as sampling_module
from dera_jax.decoding.realign import Realigned, with_lam
from dera_jax.decoding.sampling import Sampling, prefill, sample, sample_from
from dera_jax.models.language_model import score, sequence_keys
from dera_jax.models.tabular import TabularLM
from tests.compiled import compiled, start
from tests.decoding import worlds

FIRST_DRAWS = [1.441218, 1.4971200, 1.2772480, 0.5770062, 4.2354951, -0.1590075]


@pytest.fixture(scope="module")
def pair():
    return worlds.realigned_t5()


@pytest.mark.slow
def test_every_row_of_a_padded_batch_equals_that_row_alone(pair):
    model, params, prompts, keys = pair
    together = sample(model, params, prompts, keys, Sampling(max_length=12))
    for b in range(4):
        one = jax.tree.map(lambda x, b=b: x[b : b + 1], prompts)
        one = one.replace(tokens=one.tokens[:, : int(one.lengths[0])])
        alone = sample(model, params, one, keys[b : b + 1], Sampling(max_length=12))
        np.testing.assert_array_equal(together.tokens[b], alone.tokens[0])
        np.testing.assert_allclose(together.scores.log_prob[b], alone.scores.log_prob[0], atol=1e-4)


def test_calls_are_pure(pair):
    first = sample(*pair, Sampling(max_length=12))
    sample(*pair, Sampling(max_length=12, temperature=0.3, end_ids=(7,)))
    second = sample(*pair, Sampling(max_length=12))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_lambda_may_be_traced(pair):
    model, params, prompts, keys = pair

    def decode(lam):
        return sample(model, params, prompts.replace(lam=lam), keys, Sampling(max_length=4)).tokens

    np.testing.assert_array_equal(jax.jit(decode)(prompts.lam), decode(prompts.lam))


def test_draws_are_those_of_the_first_version():
    """Seeds must give the same samples for ever; these numbers are from the first release."""
    keys = sequence_keys(7, [123456789], [3])
    noise = sampling_module.gumbel_noise(keys, jnp.array(5), 6)
    np.testing.assert_allclose(noise[0, 0], FIRST_DRAWS, rtol=1e-5)


def test_log_probs_are_those_of_teacher_forcing(pair):
    model, params, prompts, keys = pair
    scored = jax.jit(score, static_argnums=0)
    out = sample(model, params, prompts, keys, Sampling(max_length=12, temperature=0.7, top_k=9))
    state = start(model, params, prompts, keys.shape[1])
    np.testing.assert_allclose(
        out.scores.log_prob, scored(model, params, state, out.tokens, out.lengths), atol=1e-3
    )
    for single, p, log_prob in zip(model.models, params, out.scores.part_log_prob, strict=True):
        state = start(single, p, prompts.replace(lam=None), keys.shape[1])
        expected = scored(single, p, state, out.tokens, out.lengths)
        np.testing.assert_allclose(log_prob, expected, atol=1e-3)


def test_kl_is_that_of_the_whole_distribution(pair):
    model, params, prompts, keys = pair
    out = sample(model, params, prompts, keys, Sampling(max_length=6))
    state = start(model, params, prompts, keys.shape[1])
    output = compiled(model, "teacher_forced")(params, state, out.tokens)
    p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (output.logits, output.parts[0]))
    expected = (p * np.log(p / q)).sum(-1) * (np.arange(6) < out.lengths[..., None])
    np.testing.assert_allclose(out.scores.kl, expected, atol=1e-4)
    np.testing.assert_allclose(out.scores.kl[:, :2], 0, atol=1e-6)  # λ = 0 is the reference


def test_sampling_log_prob_is_of_the_distribution_sampled():
    """Tempered and truncated by hand, in float64, for every prefix of a table."""
    model, (params,) = worlds.tabular_tower(1)
    sampling = Sampling(max_length=3, temperature=0.6, top_k=3, top_p=0.8)
    out = sample(model, params, *worlds.rows(200), sampling)
    for row in range(200):
        for t in range(int(out.lengths[0, row])):
            prefix = out.tokens[0, row, :t].tolist()
            logits = np.asarray(params, np.float64)[0, worlds.prefix_number(prefix, 4)] / 0.6
            order = np.argsort(-logits)[:3]
            p = np.exp(logits[order]) / np.exp(logits[order]).sum()
            nucleus = int(np.searchsorted(np.cumsum(p), 0.8)) + 1
            allowed = dict(
                zip(order[:nucleus].tolist(), p[:nucleus] / p[:nucleus].sum(), strict=True)
            )
            token = int(out.tokens[0, row, t])
            assert np.exp(out.scores.sampling_log_prob[0, row, t]) == pytest.approx(
                allowed[token], abs=1e-5
            )


def test_greedy_takes_the_most_likely_token_and_reports_certainty():
    model, (params,) = worlds.tabular_tower(1)
    out = sample(
        model,
        params,
        *worlds.rows(1),
        Sampling(max_length=3, greedy=True),
    )
    prefix = []
    for t in range(int(out.lengths[0, 0])):
        logits = params[0, worlds.prefix_number(prefix, 4)]
        assert int(out.tokens[0, 0, t]) == int(np.argmax(logits))
        prefix.append(int(out.tokens[0, 0, t]))
    np.testing.assert_array_equal(out.scores.sampling_log_prob, 0)


def test_minimum_length_forbids_an_early_end_and_finished_rows_stay_finished():
    model, (params,) = worlds.tabular_tower(1)
    world = model, params, *worlds.rows(500)
    out = sample(*world, Sampling(max_length=3, min_length=2))
    assert out.lengths.min() == 3 and (out.tokens[0, :, :2] != worlds.EOS).all()
    out = sample(*world, Sampling(max_length=3))
    for row, length, finished in zip(out.tokens[0], out.lengths[0], out.finished[0], strict=True):
        assert finished == (worlds.EOS in row[:length]) and not row[length:].any()
        assert length == (list(row).index(worlds.EOS) + 1 if finished else 3)


@pytest.mark.parametrize("end_ids", [(0,), (1, 3), (0, 1, 2)])
def test_each_of_several_end_tokens_ends_a_sequence(end_ids):
    """Also the id 0, which is a token like any other."""
    model, (params,) = worlds.tabular_tower(1)
    out = sample(model, params, *worlds.rows(500), Sampling(max_length=3, end_ids=end_ids))
    last = set()
    for row, length, finished in zip(out.tokens[0], out.lengths[0], out.finished[0], strict=True):
        ends = [int(token) in end_ids for token in row[:length]]
        assert sum(ends) == ends[-1] == finished and not row[length:].any()
        assert finished or length == 3
        last |= {int(row[length - 1])} if finished else set()
    assert last == set(end_ids)
    # The same draws with one of them alone: the same tokens up to its first end.
    alone = sample(model, params, *worlds.rows(500), Sampling(max_length=3, end_ids=end_ids[:1]))
    upto = np.arange(3) < out.lengths[..., None]
    np.testing.assert_array_equal(np.where(upto, alone.tokens, 0), out.tokens)


@pytest.mark.parametrize("greedy", [False, True])
def test_minimum_length_forbids_all_end_tokens(greedy):
    """Here all end tokens are the likeliest ones everywhere."""
    model, (params,) = worlds.tabular_tower(1)
    params = params.at[..., np.array([1, 3])].add(5.0)
    ends = np.array([1, 3])
    settings = Sampling(max_length=3, min_length=2, end_ids=ends, greedy=greedy)
    out = sample(model, params, *worlds.rows(200), settings)
    assert not np.isin(out.tokens[0, :, :2], ends).any() and (out.lengths == 3).all()
    early = sample(model, params, *worlds.rows(200), settings.replace(min_length=0))
    assert (early.lengths == 1).mean() > 0.9
    logits = jnp.zeros((1, 2, 4))
    ruled_out = sampling_module.sampling_logits(logits, jnp.array([[1, 2]]), settings)
    np.testing.assert_array_equal(ruled_out < 0, [[[False, True, False, True], [False] * 4]])


@pytest.mark.parametrize("kind", [tuple, np.array])
def test_end_tokens_may_be_traced(kind):
    model, (params,) = worlds.tabular_tower(1)
    decode = lambda ids: sample(model, params, *worlds.rows(50), Sampling(3, end_ids=ids)).tokens
    for end_ids in ((1, 3), (0, 2)):
        np.testing.assert_array_equal(jax.jit(decode)(kind(end_ids)), decode(end_ids))


def test_settings_may_differ_by_row():
    model, (params,) = worlds.tabular_tower(1)
    mixed = Sampling(max_length=3, temperature=np.repeat([[0.5, 2.0]], 32, axis=0).reshape(1, 64))
    world = model, params, *worlds.rows(64)
    out = sample(*world, mixed)
    cold = sample(*world, Sampling(max_length=3, temperature=0.5))
    hot = sample(*world, Sampling(max_length=3, temperature=2.0))
    np.testing.assert_array_equal(out.tokens[:, 0::2], cold.tokens[:, 0::2])
    np.testing.assert_array_equal(out.tokens[:, 1::2], hot.tokens[:, 1::2])
    assert (cold.tokens != hot.tokens).any()


def test_prefilled_prompts_give_the_same_samples_for_any_lambda_and_keys(pair):
    model, params, prompts, keys = pair
    sampling, lam = Sampling(max_length=12), prompts.lam
    prefilled = prefill(model, params, prompts, keys.shape[1], sampling.max_length)
    for new_lam, new in ((lam, keys), (lam[:, ::-1] * 2, keys[:, ::-1]), (lam, keys)):
        other = prefilled.replace(state=with_lam(prefilled.state, new_lam))
        again = sample_from(model, params, other, new, sampling)
        fresh = sample(model, params, prompts.replace(lam=new_lam), new, sampling)
        jax.tree.map(np.testing.assert_array_equal, again, fresh)
    with pytest.raises(ValueError, match="at most 16 tokens; found .* of 17"):
        sample_from(model, params, prefilled, keys, Sampling(max_length=17))
    with pytest.raises(ValueError, match="prefilled for"):
        sample_from(model, params, prefilled, keys[:, :1], sampling)


def test_new_values_compile_nothing(pair):
    model, params, prompts, keys = pair
    sample(*pair, Sampling(max_length=12, top_k=5, top_p=0.9))
    before = sampling_module._sample._cache_size()
    for temperature, top_k, top_p, end_id in ((0.5, 3, 0.5, 1), (1.5, 64, 0.99, 9)):
        sampling = Sampling(
            max_length=12, temperature=temperature, top_k=top_k, top_p=top_p, end_ids=(end_id,),
            min_length=top_k % 4,
        )  # fmt: skip
        sample(model, params, prompts.replace(lam=prompts.lam * temperature), keys, sampling)
    assert sampling_module._sample._cache_size() == before


CALLS = []


@dataclasses.dataclass(frozen=True)
class Counting(TabularLM):
    """A table that counts how often the compiled program steps it."""

    def step(self, params, state, tokens):
        jax.debug.callback(lambda: CALLS.append(1))
        return super().step(params, state, tokens)


@pytest.mark.parametrize(("max_length", "expected"), [(20, 24), (8, 8), (3, 8)])
def test_tokens_cost_one_step_each_up_to_the_chunk(max_length, expected):
    model = Counting(vocab_size=4, horizon=3)
    pair = Realigned(model, (model,))
    params = (model.init(jax.random.key(0)),) * 2
    CALLS.clear()
    out = sample(
        pair, params, *worlds.rows(5, 0.5),
        Sampling(max_length=max_length, end_ids=(-1,)),
    )  # fmt: skip
    jax.effects_barrier()
    assert len(CALLS) == 2 * expected == 2 * int(out.steps)
    assert out.tokens.shape == (1, 5, max_length) and (out.lengths == max_length).all()


def test_decoding_stops_when_every_row_has_ended():
    model = TabularLM(vocab_size=4, horizon=3)
    always_end = model.init(jax.random.key(0)).at[..., worlds.EOS].set(50.0)
    out = sample(model, always_end, *worlds.rows(5), Sampling(max_length=80))
    assert int(out.steps) == 8 and (out.lengths == 1).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"temperature": 0.0},
            r"Sampling.temperature must be a finite number above 0 \(for the most likely token",
        ),
        ({"top_p": 1.5}, r"Sampling.top_p must be a finite number in \(0, 1\], or None; found 1.5"),
        ({"top_k": 5}, r"Sampling.top_k must be an integer in \[1, 4\], or None; found 5"),
        ({"min_length": 4}, r"Sampling.min_length must be an integer in \[0, 3\]; found 4"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    model, (params,) = worlds.tabular_tower(1)
    with pytest.raises(ValueError, match=message):
        sample(
            model,
            params,
            *worlds.rows(1),
            Sampling(max_length=3, **setting),
        )
