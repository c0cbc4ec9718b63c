"""Searches with a Python reward on two real processes, each with prompts of its own.

As a script, `python -m tests.decoding.test_two_processes PORT INDEX FILE`, this is one of the two.
"""

import dataclasses
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.decoding import search as driver
from dera_jax.decoding.beam_search import Search, beam_search
from dera_jax.decoding.evolution import Evolution, generation
from dera_jax.decoding.sampling import Sampling
from dera_jax.decoding.search import Guide
from dera_jax.models.language_model import sequence_keys
from dera_jax.models.tabular import TabularLM
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.protocol import Source
from dera_jax.rewards.scoring import RewardScorer
from tests import processes
from tests.decoding import worlds

EOS, T = worlds.EOS, 6
MODEL = TabularLM(5, T, num_inputs=3)
END_BONUS = (5.0, 5.0, -5.0)  # of the end token's logit: documents 0 and 1 end soon, 2 never
SEARCH = Search(T, beams=2, top_k=3, reward_weight=0.1)
EVOLUTION = Evolution(Sampling(T), population=3, period=2, survivors=2)

# The prompts of a process, and how many of them are documents; the others only fill the batch.
ALONE = [0, 1, 2], 3
EARLY_AND_LATE = [([0, 1], 2), ([2, 2], 1)]
ONE_HAS_NONE = [([2, 2], 1), ([2, 2], 0)]


@dataclasses.dataclass(frozen=True, repr=False)
class Bounded(HostReward):
    """With a bound, without which a beam search never ends early."""

    @property
    def highest(self):
        return 1.0


def evolved(table, rows, guide):
    n = EVOLUTION.population
    prompts = worlds.each(np.repeat(np.array(rows)[:, None, None], n, axis=1))
    keys = sequence_keys(0, np.array(rows), np.arange(n))
    found = generation(MODEL, table, prompts, keys, EVOLUTION, guide)
    return found.texts.tokens, found.texts.lengths, found.rewards, found.forward_tokens


def searched(table, rows, guide):
    prompts, keys = worlds.whole(np.array(rows)[:, None]), sequence_keys(0, np.array(rows), [0])
    found = beam_search(MODEL, table, prompts, keys, SEARCH, guide)
    return found.pool.tokens, found.pool.lengths, found.scores, found.forward_tokens


METHODS = {"generation": evolved, "beam search": searched}


def run(method: str, rows: list[int], num: int) -> dict:
    """What a method finds for the first `num` rows, its rounds, and what the reward was asked."""
    asked = []

    def reward(documents, texts):
        asked.append(list(documents))
        ids = [[int(x) for x in text.split()] for text in texts]
        return [(int(d) + sum(i * x for i, x in enumerate(row))) % 5 / 5
                for d, row in zip(documents, ids, strict=True)]  # fmt: skip

    table = MODEL.init(jax.random.key(0)).at[..., EOS].add(jnp.array(END_BONUS)[:, None])
    scorer = RewardScorer(Bounded(reward), None, lambda ids: " ".join(map(str, ids)))
    guide = Guide(
        scorer, Source(worlds.whole(np.array(rows)[:, None])), [str(x) for x in rows[:num]]
    )
    with mock.patch.object(driver, "_everywhere", wraps=driver._everywhere) as everywhere:
        found = METHODS[method](table, rows, guide)
    found = [np.asarray(x)[:num].tolist() for x in found]
    return {"found": found, "rounds": everywhere.call_count, "text_prompts": asked}


CASES = [(method, share) for share in (EARLY_AND_LATE, ONE_HAS_NONE) for method in METHODS]


def main(port: str, index: str, file: str) -> None:
    """Runs all cases as one of the two processes."""
    processes.join(
        port, index, file, lambda: [run(method, *share[int(index)]) for method, share in CASES]
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[tuple[dict, dict]]:
    """What both processes found, for each case."""
    folder = tmp_path_factory.mktemp("two")
    both = processes.run_two("tests.decoding.test_two_processes", folder)
    return list(zip(*both, strict=True))


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{CASES[i][0]} {i}")
def test_both_run_as_many_rounds_and_find_what_one_process_does(results, case):
    (method, share), both = CASES[case], results[case]
    alone = run(method, *ALONE)
    assert [x["rounds"] for x in both] == [alone["rounds"]] * 2
    for (rows, num), ours in zip(share, both, strict=True):
        assert ours["found"] == [[x[row] for row in rows[:num]] for x in alone["found"]]


def test_one_of_the_processes_would_have_ended_earlier():
    for method in METHODS:
        early, late = (run(method, *share)["rounds"] for share in EARLY_AND_LATE)
        assert early < late


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{CASES[i][0]} {i}")
def test_rewards_are_asked_about_the_documents_of_their_process_alone(results, case):
    (_, share), both = CASES[case], results[case]
    for (rows, num), ours in zip(share, both, strict=True):
        assert {d for call in ours["text_prompts"] for d in call} == {str(x) for x in rows[:num]}
        texts = len(ours["text_prompts"][0]) if num else 0
        assert all(call == [str(x) for x in rows[:num] for _ in range(texts // num)]
                   for call in ours["text_prompts"])  # fmt: skip
        assert len(ours["text_prompts"]) == (ours["rounds"] if num else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
