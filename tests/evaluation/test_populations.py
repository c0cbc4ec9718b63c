"""DARWIN as a method: what its answer costs, counted from the trace, and what the trace says."""

import dataclasses

import jax
import numpy as np
import pytest

from dera_jax.decoding.evolution import Evolution
from dera_jax.decoding.mutation import Offspring, TemplateBank, Unchanged
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import record_store
from dera_jax.evaluation.method_setup import MethodSetup
from dera_jax.evaluation.methods import SamplingMethod, run
from dera_jax.evaluation.populations import TRACE, EvolutionMethod, replacement_statistics
from dera_jax.models.heads import ValueHead
from dera_jax.models.t5_lm import T5
from dera_jax.prompts import Prompt
from dera_jax.rewards.learned import RewardModel
from dera_jax.rewards.scoring import RewardScorer
from tests.evaluation import method_setups
from tests.experiments import small

LENGTH = method_setups.LENGTH
ROWS = np.arange(4)
EVOLUTION = Evolution(Sampling(LENGTH), population=3, period=3, survivors=1, generations=2)
PLAIN = "summarize: {document}"
BANK = TemplateBank((PLAIN, f"briefly, {PLAIN}", f"{PLAIN} in short"))


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> MethodSetup:
    return method_setups.of_random_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def answers(setup):
    return EvolutionMethod("DARWIN", EVOLUTION, BANK, lam=0.5).answer(setup, ROWS)


def test_the_answer_is_the_best_text_of_the_trace(setup, answers):
    for b, details in enumerate(answers.details):
        trace = details[TRACE]
        answers_of = lambda x: zip(x["texts"], x["rewards"], strict=True)
        found = [(trace["seed"]["text"], trace["seed"]["reward"], None)]
        for g, x in enumerate(trace["generations"]):
            found += [(*answer, (g, i)) for i, answer in enumerate(answers_of(x))]
        best, reward, where = max(found, key=lambda x: x[1])  # the first of equal ones
        text = setup.tokenizer.decode(answers.tokens[b, 0, : answers.lengths[b, 0]].tolist())
        assert trace["best"] == {"text": best, "reward": reward, "from": where} and text == best


def test_the_trace_tells_who_took_whose_text(setup, answers):
    adopted = 0
    for details in answers.details:
        for generation in details[TRACE]["generations"]:
            assert set(generation["templates"]) <= set(BANK.templates)
            parts = [""] * 3
            for period in generation["periods"]:
                donors, survived = period["donors"], period["survived"]
                best = max(range(3), key=lambda i: (period["rewards"][i], -i))
                assert [i for i in range(3) if survived[i]] == [best]
                keeps = [survived[i] or period["ended"][i] for i in range(3)]
                assert donors == [i if keeps[i] else best for i in range(3)]
                parts = [a + b for a, b in zip(parts, period["written"], strict=True)]
                parts = [parts[donor] for donor in donors]
                adopted += sum(donor != i for i, donor in enumerate(donors))
            squeeze = lambda text: text.replace(" ", "")  # pieces lose the space before them
            assert list(map(squeeze, parts)) == list(map(squeeze, generation["texts"]))
    assert adopted


def positions_by_trace(setup, details, row, read) -> int:
    """Of one model: inputs, the seed's text, every token drawn, and adopted texts once more."""
    fed = sum(read)
    for generation in details[TRACE]["generations"]:
        for number, period in enumerate(generation["periods"]):
            steps = EVOLUTION.period * (number + 1)
            for i, donor in enumerate(period["donors"]):
                ended = steps >= LENGTH or period["ended"][donor]
                fed += steps * (donor != i and not ended)
    return fed


@pytest.mark.slow
def test_what_is_counted(setup):
    never = dataclasses.replace(EVOLUTION, sampling=Sampling(LENGTH, end_ids=(-1,)))
    answers = EvolutionMethod("DARWIN", never, Unchanged()).answer(setup, ROWS)
    size = setup.documents.prompts.lengths
    for b in range(4):
        drawn = LENGTH * (1 + 2 * 3)
        read = [size[b] * (1 + 2 * 3), drawn]
        assert answers.forward_tokens[b, 0] == positions_by_trace(
            setup, answers.details[b], b, read
        )
    # On a pair everything twice. With 2 survivors less is adopted.
    pair = EvolutionMethod("DARWIN", never, Unchanged(), lam=0.5).answer(setup, ROWS)
    for b in range(4):
        read = [size[b] * (1 + 2 * 3), LENGTH * (1 + 2 * 3)]
        once = positions_by_trace(setup, pair.details[b], b, read)
        assert pair.forward_tokens[b, 0] == 2 * once


def test_instructions_are_read_and_so_counted(setup):
    never = dataclasses.replace(
        EVOLUTION, generations=1, period=LENGTH, sampling=Sampling(LENGTH, end_ids=(-1,))
    )
    plain = EvolutionMethod("plain", never, Unchanged()).answer(setup, ROWS).forward_tokens
    longer = TemplateBank((f"briefly, {PLAIN}",))
    added = len(setup.tokenizer.encode("briefly, "))
    instructed = EvolutionMethod("instructed", never, longer).answer(setup, ROWS).forward_tokens
    np.testing.assert_array_equal(instructed, plain + 3 * added)


@dataclasses.dataclass(frozen=True)
class Costly:
    """Copies, for which a model read and wrote so many tokens."""

    cost: int

    def __call__(self, parents, number, keys) -> Offspring:
        each = np.full(len(parents), self.cost)
        return Offspring([[parent] * number for parent in parents], each, 0 * each + 1)


def test_models_that_mutate_and_judge_are_counted(setup):
    model = ValueHead(T5(small.CONFIG))
    params = model.random(jax.random.key(0))
    learned = dataclasses.replace(
        setup, scorer=RewardScorer(RewardModel(model), params, setup.tokenizer.decode)
    )
    one = dataclasses.replace(EVOLUTION, generations=1, period=LENGTH)
    free = EvolutionMethod("free", one, Unchanged()).answer(setup, ROWS)
    paid = EvolutionMethod("paid", one, Costly(100)).answer(learned, ROWS)
    size = setup.documents.prompts.lengths
    # The seed's text alone, and three texts in the one round; see `RewardModel.forward_tokens`.
    scored = (size + LENGTH + 1) + (size + 3 * (LENGTH + 1))
    np.testing.assert_array_equal(
        paid.forward_tokens[:, 0], free.forward_tokens[:, 0] + 100 + scored
    )
    assert [x[TRACE]["generations"][0]["fallbacks"] for x in paid.details] == [1] * 4


def test_without_mutation_and_replacement_it_costs_best_of_n_and_more_inputs(setup):
    evolution = dataclasses.replace(EVOLUTION, period=LENGTH, generations=1)
    bred = EvolutionMethod("DARWIN", evolution, Unchanged()).answer(setup, ROWS)
    best = SamplingMethod("best", n=4, best=True).answer(setup, ROWS)
    np.testing.assert_array_equal(bred.tokens, best.tokens)
    size = setup.documents.prompts.lengths
    np.testing.assert_array_equal(bred.forward_tokens[:, 0], best.forward_tokens[:, 0] + 3 * size)


def test_the_plain_prompt_is_what_the_task_reads(setup):
    plain = setup.documents.prompts
    size = plain.tokens.shape[1]  # all documents are longer, and cut
    for template in (None, PLAIN):
        found = setup.encode([setup.prompt(template, row) for row in ROWS], size, None)
        jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_keywords_that_are_not_there_are_refused(setup):
    bare = dataclasses.replace(setup, documents=dataclasses.replace(setup.documents, keywords=None))
    with pytest.raises(ValueError, match="has the slot {keywords}, but the task has no keywords"):
        EvolutionMethod("x", EVOLUTION, Unchanged(), template="{keywords}: {document}").answer(
            bare, ROWS
        )


def test_a_stopped_run_goes_on_and_ends_the_same(setup, tmp_path):
    method = EvolutionMethod("DARWIN", EVOLUTION, BANK, lam=0.5)
    whole = run(method, setup, tmp_path)  # batches of 3 and of 1, filled up
    for name in (record_store.MANIFEST, "shards/00001.jsonl"):
        (tmp_path / name).unlink()
    assert run(method, setup, tmp_path) == whole


def test_a_long_instruction_cuts_the_document(setup):
    prompt = Prompt(setup.documents.texts[0], f"briefly, {PLAIN}")
    whole, cut = (setup.encode([prompt], size, None) for size in (60, 12))
    assert cut.lengths.tolist() == [12]
    whole, cut = whole.tokens[0], cut.tokens[0]
    around = setup.tokenizer.encode("briefly, ")
    np.testing.assert_array_equal(cut[:11], whole[:11])
    assert cut[-1] == 1 and cut[: len(around)].tolist() == around


def test_what_replacement_did_is_counted():
    period = lambda rewards, survived, donors, ended=(0, 0, 0): {
        "rewards": rewards,
        "survived": survived,
        "ended": ended,
        "donors": donors,
    }
    first = {
        "parent": {"template": "p"},
        "templates": ["p", "q", "r"],
        "texts": ["a", "b", "a"],
        "rewards": [1.0, 2.0, 1.0],
        "periods": [
            period([1, 3, 1], [1, 1, 0], [0, 1, 0]),  # a tie; what is adopted is no better
            period([2, 3, 1], [1, 1, 0], [0, 1, 1]),  # better by 2
            period([2, 3, 1], [1, 1, 0], [0, 1, 2], ended=(1, 1, 1)),  # nothing left to replace
        ],
    }
    second = {
        "parent": {"template": "s"},
        "templates": ["p", "p", "p"],
        "texts": ["a", "b", "c"],
        "rewards": [0.0, 0.0, 2.0],
        "periods": [period([0, 0, 0], [1, 1, 0], [0, 1, 2], ended=(0, 0, 1))],  # a tie
    }
    found = replacement_statistics(
        [{TRACE: {"generations": [first]}}, {TRACE: {"generations": [second]}}]
    )
    assert found == pytest.approx(
        {
            "tied": 2 / 3,
            "tied_at_first": 1.0,
            "adopted": 2 / 6,
            "no_better": 1 / 2,
            "copies": 1 / 6,
            "prompts": (1 + 1 / 3) / 2,
            "different": (2 / 3 + 1) / 2,
            "population_reward": 1.0,
        }
    )
