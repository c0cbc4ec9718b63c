"""Methods side by side: what an answer costs is counted by hand, and what wins really wins."""

import dataclasses

import jax
import numpy as np
import pytest

from dera_jax.checkpoints.loading import realigned
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation import record_store
from dera_jax.evaluation.method_setup import MethodSetup
from dera_jax.evaluation.methods import SamplingMethod, SearchMethod, run
from dera_jax.evaluation.sweep_tables import mean_row
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import sequence_keys
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.learned import RewardModel
from dera_jax.rewards.scoring import RewardScorer
from dera_jax.rewards.words import faithful_fraction, words_of
from tests.evaluation import method_setups
from tests.experiments import small

LENGTH = method_setups.LENGTH
ROWS = np.arange(4)
SEARCH = Search(LENGTH, beams=2, top_k=3, lookahead=2, reward_weight=3.0)


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> MethodSetup:
    return method_setups.of_random_models(tmp_path_factory.mktemp("models"))


def read(setup: MethodSetup) -> np.ndarray:
    return setup.documents.prompts.lengths


@pytest.mark.parametrize("lam, models", [(0.0, 1), (1.0, 1), (0.5, 2)])
def test_a_sample_costs_its_input_and_its_tokens_for_each_model(setup, lam, models):
    answers = SamplingMethod("sampling", n=3, lam=lam).answer(setup, ROWS)
    np.testing.assert_array_equal(
        answers.forward_tokens, models * (read(setup)[:, None] + answers.lengths)
    )
    # The model at λ = 0 or 1 alone gives what the pair gives there.
    prompts = setup.documents.prompts.replace(lam=np.full((4, 1), lam))
    keys = sequence_keys(0, setup.documents.example_id, np.arange(3))
    out = sample(*realigned(setup.components), prompts, keys, Sampling(LENGTH))
    np.testing.assert_array_equal(answers.tokens, out.tokens)


def test_best_of_n_is_the_best_and_costs_all_n(setup):
    n = 70  # more than are sampled in one call
    everything = SamplingMethod("sampling", n=n).answer(setup, ROWS)
    rewards, _ = setup.scorer(
        setup.documents.source(ROWS),
        None,
        everything.tokens,
        everything.lengths,
        everything.finished,
    )
    best = SamplingMethod("best", n=n, best=True).answer(setup, ROWS)
    pick = rewards.argmax(axis=1)
    np.testing.assert_array_equal(best.tokens[:, 0], everything.tokens[np.arange(4), pick])
    assert len(np.unique(everything.tokens[0], axis=0)) > 30  # not one call's draws twice
    cost = read(setup) + everything.lengths.sum(axis=1)
    np.testing.assert_array_equal(best.forward_tokens[:, 0], cost)


def test_python_sees_no_document_that_only_fills_a_batch(setup, tmp_path):
    seen = []

    def remember(documents, texts):
        seen.extend(documents)
        return [float(len(text)) for text in texts]

    scorer = RewardScorer(HostReward(remember), None, setup.tokenizer.decode)
    with_python = dataclasses.replace(setup, scorer=scorer)
    n = 3
    records = run(SamplingMethod("best", n=n, best=True), with_python, tmp_path / "best")
    assert seen == [text for text in setup.documents.texts for _ in range(n)]
    every = run(
        SamplingMethod("sampling", n=n), setup, tmp_path / "every"
    )  # batches of 3, 1 filled up
    for record, all_of_it in zip(records, every, strict=True):
        longest = max((x["text"] for x in all_of_it["samples"]), key=len)
        assert record["samples"][0]["text"] == longest


@pytest.mark.slow
def test_what_a_reward_model_reads_is_counted(setup):
    model = ValueHead(T5(small.CONFIG))
    params = model.random(jax.random.key(0))
    learned = dataclasses.replace(
        setup, scorer=RewardScorer(RewardModel(model), params, setup.tokenizer.decode)
    )
    n, size = 5, read(setup)
    free = SamplingMethod("best", n=n).answer(setup, ROWS).lengths.sum(axis=1) + size
    paid = SamplingMethod("best", n=n, best=True).answer(learned, ROWS).forward_tokens[:, 0]
    np.testing.assert_array_equal(paid, free + size + n * (LENGTH + 1))
    # Without an end token, in sight or not, every step of a search is taken: 8 rounds of 6 texts.
    endless = dataclasses.replace(SEARCH, lookahead=0, end_ids=(-1,))
    searched = SearchMethod("DeAL", endless).answer(learned, ROWS).forward_tokens[:, 0]
    np.testing.assert_array_equal(searched, size + 2 * LENGTH + 8 * (size + 6 * (LENGTH + 1)))
    often = dataclasses.replace(endless, period=4)  # 2 rounds of 6 candidates and 2 that wait
    searched = SearchMethod("DeAL", often).answer(learned, ROWS).forward_tokens[:, 0]
    np.testing.assert_array_equal(searched, size + 2 * LENGTH + 2 * (size + 8 * (LENGTH + 1)))


def test_a_search_costs_its_beams_and_its_lookahead(setup):
    endless = dataclasses.replace(SEARCH, end_ids=(-1,))
    # 2 beams at 8 steps; 6 candidates look 2 tokens ahead, at the last but one step 1, at the last
    # none. At the first step there is one text to go on from, and 3 candidates.
    expected = 2 * LENGTH + 3 * 2 + 6 * (2 * (LENGTH - 3) + 1)
    for lam, models in ((0.0, 1), (0.5, 2)):
        answers = SearchMethod("DeAL", endless, lam=lam).answer(setup, ROWS)
        np.testing.assert_array_equal(
            answers.forward_tokens[:, 0], models * (read(setup) + expected)
        )


@pytest.mark.slow
def test_a_reward_in_python_searches_as_the_compiled_one(setup):
    def fn(documents, texts):
        return [faithful_fraction(text, document) for document, text in zip(documents, texts)]

    scorer = RewardScorer(HostReward(fn), None, setup.tokenizer.decode)
    ours = SearchMethod("DeAL", SEARCH).answer(setup, ROWS)
    theirs = SearchMethod("DeAL", SEARCH).answer(dataclasses.replace(setup, scorer=scorer), ROWS)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.forward_tokens, theirs.forward_tokens)


def test_the_record_tells_what_each_score_is_made_of(setup, tmp_path):
    records = run(SearchMethod("DeAL", SEARCH), setup, tmp_path)
    assert len(records) == 4  # of batches of 3, the last filled up
    for record in records:
        found = record["n_best"]
        assert found[0]["text"] == record["samples"][0]["text"]
        assert [x["score"] for x in found] == sorted((x["score"] for x in found), reverse=True)
        assert record["samples"][0]["reward"] == pytest.approx(found[0]["reward"])
        text = record["samples"][0]
        assert text["in_range"] == (text["finished"] and len(words_of(text["text"])) <= 3)
    row = mean_row(records)
    assert row["in_range_rate"] == np.mean([r["samples"][0]["in_range"] for r in records])
    assert row["forward_tokens"] == np.mean([r["samples"][0]["forward_tokens"] for r in records])


def test_a_stopped_run_goes_on_and_ends_the_same(setup, tmp_path):
    method = SamplingMethod("sampling", n=2)
    whole = run(method, setup, tmp_path)
    (tmp_path / record_store.MANIFEST).unlink()
    (tmp_path / "shards/00001.jsonl").unlink()
    assert run(method, setup, tmp_path) == whole == record_store.read(tmp_path)
    others = [
        (dataclasses.replace(method, n=3), setup, "method.n is 2 there, 3 now"),
        (method, dataclasses.replace(setup, seed=1), "seed is 0 there, 1 now"),
        (
            method,
            dataclasses.replace(setup, components=setup.components[::-1]),
            "parameters",
        ),
        (method, dataclasses.replace(setup, scorer=setup.measured), "rewards"),
    ]
    for other, bench_of_other, message in others:
        with pytest.raises(FileExistsError, match=message):
            run(other, bench_of_other, tmp_path)


def test_a_prompt_stands_before_the_document_and_cuts_nothing(setup):
    read = lambda template, lam=0.0: setup.prompts(template, ROWS, lam)
    ids = lambda prompts: [x[:n] for x, n in zip(prompts.tokens, prompts.lengths, strict=True)]
    prompts, plain = read("use {keywords}. summarize: {document}"), setup.documents.prompts
    keywords = bytes(setup.documents.keywords[0, 0]).rstrip(b"\0").decode()
    said = setup.tokenizer.decode(prompts.tokens[0])
    assert said.startswith("use ") and keywords in said
    for with_prompt, without in zip(ids(prompts), ids(plain), strict=True):
        np.testing.assert_array_equal(with_prompt[-len(without) :], without)  # and ends as it did
    after = ids(read("{document} In short:"))[0]
    assert after[-1] == 1 and "In short:" in setup.tokenizer.decode(after)
    for own in (None, "summarize: {document}"):
        jax.tree.map(np.testing.assert_array_equal, read(own), plain)
        assert read(own).lam is read(own, 1.0).lam is None  # of single models
    for template in (None, "{document} In short:"):
        np.testing.assert_array_equal(read(template, 0.5).lam, np.full((4, 1), 0.5))
    with pytest.raises(ValueError, match="no slot {document}"):
        read("summarize")
    without = dataclasses.replace(setup.documents, keywords=None)
    with pytest.raises(ValueError, match="the task has no keywords"):
        dataclasses.replace(setup, documents=without).prompts("{keywords} {document}", ROWS, 0.0)


def test_what_cannot_be_meant_is_refused(setup):
    alone = dataclasses.replace(setup, components=setup.components[:1])
    with pytest.raises(ValueError, match="λ = 0.5 needs an aligned model"):
        SamplingMethod("DeRa", lam=0.5).answer(alone, ROWS)
    with pytest.raises(ValueError, match="must be 1 for greedy"):
        SamplingMethod("greedy", n=2, greedy=True)
