"""Methods side by side: what an answer costs is counted by hand, and what wins really wins."""

import dataclasses

import jax
import numpy as np
import pytest

from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.evaluation import shards
from dera_jax.evaluation.bench import Bench
from dera_jax.evaluation.methods import Sampled, Searched, run
from dera_jax.evaluation.sweep import measure
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import sequence_keys
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.learned import RewardModel
from dera_jax.rewards.words import faithful_share, words_of
from tests.evaluation import benches
from tests.experiments import small

LENGTH = benches.LENGTH
ROWS = np.arange(4)
SEARCH = Search(LENGTH, beams=2, top_k=3, lookahead=2, reward_weight=3.0)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return benches.of_random_models(tmp_path_factory.mktemp("models"))


def read(bench: Bench) -> np.ndarray:
    return bench.documents.prompts.lengths


@pytest.mark.parametrize("lam, models", [(0.0, 1), (1.0, 1), (0.5, 2)])
def test_a_sample_costs_its_input_and_its_tokens_for_each_model(bench, lam, models):
    answers = Sampled("sampling", n=3, lam=lam).answer(bench, ROWS)
    np.testing.assert_array_equal(
        answers.positions, models * (read(bench)[:, None] + answers.lengths)
    )
    # The model at λ = 0 or 1 alone gives what the pair gives there.
    prompts = bench.documents.prompts.replace(lam=np.full((4, 1), lam))
    keys = sequence_keys(0, bench.documents.example_id, np.arange(3))
    pair = Realigned(bench.models[0], bench.models[1:])
    out = sample(pair, bench.params, prompts, keys, Sampling(LENGTH))
    np.testing.assert_array_equal(answers.tokens, out.tokens)


def test_best_of_n_is_the_best_and_costs_all_n(bench):
    n = 70  # more than are sampled in one call
    everything = Sampled("sampling", n=n).answer(bench, ROWS)
    rewards, _ = bench.judge(
        bench.documents.source(ROWS),
        None,
        everything.tokens,
        everything.lengths,
        everything.finished,
    )
    best = Sampled("best", n=n, best=True).answer(bench, ROWS)
    pick = rewards.argmax(axis=1)
    np.testing.assert_array_equal(best.tokens[:, 0], everything.tokens[np.arange(4), pick])
    assert len(np.unique(everything.tokens[0], axis=0)) > 30  # not one call's draws twice
    cost = read(bench) + everything.lengths.sum(axis=1)
    np.testing.assert_array_equal(best.positions[:, 0], cost)


def test_python_sees_no_document_that_only_fills_a_batch(bench, tmp_path):
    seen = []

    def remember(documents, texts):
        seen.extend(documents)
        return [float(len(text)) for text in texts]

    judge = Judge(HostReward(remember), None, bench.tokenizer.decode)
    with_python = dataclasses.replace(bench, judge=judge)
    n = 3
    records = run(Sampled("best", n=n, best=True), with_python, tmp_path / "best")
    assert seen == [text for text in bench.documents.texts for _ in range(n)]
    every = run(Sampled("sampling", n=n), bench, tmp_path / "every")  # batches of 3, 1 filled up
    for record, all_of_it in zip(records, every, strict=True):
        longest = max((x["text"] for x in all_of_it["samples"]), key=len)
        assert record["samples"][0]["text"] == longest


@pytest.mark.slow
def test_what_a_reward_model_reads_is_counted(bench):
    model = ValueHead(T5(small.CONFIG))
    params = model.random(jax.random.key(0))
    learned = dataclasses.replace(
        bench, judge=Judge(RewardModel(model), params, bench.tokenizer.decode)
    )
    n, size = 5, read(bench)
    free = Sampled("best", n=n).answer(bench, ROWS).lengths.sum(axis=1) + size
    paid = Sampled("best", n=n, best=True).answer(learned, ROWS).positions[:, 0]
    np.testing.assert_array_equal(paid, free + size + n * (LENGTH + 1))
    # Without an end token, in sight or not, every step of a search is taken: 8 rounds of 6 texts.
    endless = dataclasses.replace(SEARCH, lookahead=0, end_ids=(-1,))
    searched = Searched("DeAL", endless).answer(learned, ROWS).positions[:, 0]
    np.testing.assert_array_equal(searched, size + 2 * LENGTH + 8 * (size + 6 * (LENGTH + 1)))
    often = dataclasses.replace(endless, period=4)  # 2 rounds of 6 candidates and 2 that wait
    searched = Searched("DeAL", often).answer(learned, ROWS).positions[:, 0]
    np.testing.assert_array_equal(searched, size + 2 * LENGTH + 2 * (size + 8 * (LENGTH + 1)))


def test_a_search_costs_its_beams_and_its_lookahead(bench):
    endless = dataclasses.replace(SEARCH, end_ids=(-1,))
    # 2 beams at 8 steps; 6 candidates look 2 tokens ahead, at the last but one step 1, at the last
    # none. At the first step there is one text to go on from, and 3 candidates.
    expected = 2 * LENGTH + 3 * 2 + 6 * (2 * (LENGTH - 3) + 1)
    for lam, models in ((0.0, 1), (0.5, 2)):
        answers = Searched("DeAL", endless, lam=lam).answer(bench, ROWS)
        np.testing.assert_array_equal(answers.positions[:, 0], models * (read(bench) + expected))


@pytest.mark.slow
def test_a_reward_in_python_searches_as_the_compiled_one(bench):
    def fn(documents, texts):
        return [faithful_share(text, document) for document, text in zip(documents, texts)]

    judge = Judge(HostReward(fn), None, bench.tokenizer.decode)
    ours = Searched("DeAL", SEARCH).answer(bench, ROWS)
    theirs = Searched("DeAL", SEARCH).answer(dataclasses.replace(bench, judge=judge), ROWS)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.positions, theirs.positions)


def test_the_record_tells_what_each_score_is_made_of(bench, tmp_path):
    records = run(Searched("DeAL", SEARCH), bench, tmp_path)
    assert len(records) == 4  # of batches of 3, the last filled up
    for record in records:
        found = record["n_best"]
        assert found[0]["text"] == record["samples"][0]["text"]
        assert [x["score"] for x in found] == sorted((x["score"] for x in found), reverse=True)
        assert record["samples"][0]["reward"] == pytest.approx(found[0]["reward"])
        text = record["samples"][0]
        assert text["within"] == (text["finished"] and len(words_of(text["text"])) <= 3)
    row = measure(records)
    assert row["within"] == np.mean([r["samples"][0]["within"] for r in records])
    assert row["positions"] == np.mean([r["samples"][0]["positions"] for r in records])


def test_a_stopped_run_goes_on_and_ends_the_same(bench, tmp_path):
    method = Sampled("sampling", n=2)
    whole = run(method, bench, tmp_path)
    (tmp_path / shards.MANIFEST).unlink()
    (tmp_path / "shards/00001.jsonl").unlink()
    assert run(method, bench, tmp_path) == whole == shards.read(tmp_path)
    others = [
        (dataclasses.replace(method, n=3), bench, "settings.method.n is 2 there, 3 now"),
        (method, dataclasses.replace(bench, seed=1), "settings.seed is 0 there, 1 now"),
        (method, dataclasses.replace(bench, params=bench.params[::-1]), "settings.parameters"),
        (method, dataclasses.replace(bench, judge=bench.measured), "settings.rewards"),
    ]
    for other, bench_of_other, message in others:
        with pytest.raises(FileExistsError, match=message):
            run(other, bench_of_other, tmp_path)


def test_a_prompt_stands_before_the_document_and_cuts_nothing(bench):
    read = lambda template, lam=0.0: bench.prompts(template, ROWS, lam)
    ids = lambda prompts: [x[:n] for x, n in zip(prompts.tokens, prompts.lengths, strict=True)]
    prompts, plain = read("use {keywords}. summarize: {document}"), bench.documents.prompts
    keywords = bytes(bench.documents.keywords[0, 0]).rstrip(b"\0").decode()
    said = bench.tokenizer.decode(prompts.tokens[0])
    assert said.startswith("use ") and keywords in said
    for with_prompt, without in zip(ids(prompts), ids(plain), strict=True):
        np.testing.assert_array_equal(with_prompt[-len(without) :], without)  # and ends as it did
    after = ids(read("{document} In short:"))[0]
    assert after[-1] == 1 and "In short:" in bench.tokenizer.decode(after)
    for own in (None, "summarize: {document}"):
        jax.tree.map(np.testing.assert_array_equal, read(own), plain)
        assert read(own).lam is read(own, 1.0).lam is None  # of single models
    for template in (None, "{document} In short:"):
        np.testing.assert_array_equal(read(template, 0.5).lam, np.full((4, 1), 0.5))
    with pytest.raises(ValueError, match="no slot {document}"):
        read("summarize")
    without = dataclasses.replace(bench.documents, keywords=None)
    with pytest.raises(ValueError, match="the task no keywords"):
        dataclasses.replace(bench, documents=without).prompts("{keywords} {document}", ROWS, 0.0)


def test_what_cannot_be_meant_is_refused(bench):
    alone = dataclasses.replace(bench, models=bench.models[:1], params=bench.params[:1])
    with pytest.raises(ValueError, match="λ = 0.5 needs an aligned model"):
        Sampled("DeRa", lam=0.5).answer(alone, ROWS)
    with pytest.raises(ValueError, match="must be 1 for greedy"):
        Sampled("greedy", n=2, greedy=True)
