"""Where devices talk to each other while a mesh decodes, read from the compiled programs' text.

With `data` alone the devices ask one another whether all hypotheses, or searches, have ended, and nothing
else. With `model` beside it each token of each component model costs

    one all-reduce for the embedding, whose table is split along the vocabulary;
    one for each attention whose heads are split, and for each feed-forward layer;
    one all-gather for the logits, before a token is chosen.
"""

import pytest

from tests.decoding.worlds import run_on_eight_devices

SCRIPT = """
import collections, contextlib, re
from dera_jax import partitioning
from dera_jax.decoding import sampling, search
from tests.conformance import table

KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
OPERATION = re.compile(rf"= (.*?) ({KINDS})(?:-start)?[(]")
TEXTS = []

class Read(Exception):
    pass

def recorded(compiled):
    def call(*args):
        TEXTS.append(compiled.lower(*args).compile().as_text())
        raise Read  # what the program finds is not asked here
    return call

sampling._sample = recorded(sampling._sample)
search._compiled = recorded(search._compiled)

def truncated(world):
    settings = sampling.Sampling(9, temperature=0.7, top_k=5, top_p=0.9, end_ids=world.setting.ends)
    given = world.model, world.params, world.prompts, world.keys(table.NUMBERS)
    sampling.sample(*given, settings)

def collectives(method, name, mesh):
    # By kind and type, how many arrays the loops of a method move; outside of loops is the prefill.
    TEXTS.clear()
    run = truncated if method == "truncated" else table.METHODS[method]
    with partitioning.use_mesh(partitioning.make_mesh(*mesh)), contextlib.suppress(Read):
        run(table.world(name, table.Setting(rows=(0, 1, 2, 1, 0, 2, 2, 1))))
    (text,) = TEXTS
    found = collections.Counter()
    for part in re.split(r"\\n(?=\\S)", text):
        if part.startswith("ENTRY"):
            continue
        for types, kind in OPERATION.findall(part):
            for array in re.findall(r"(\\w+)\\[", types):
                found[kind, array] += 1
    return found

for name in NAMES:
    for method in METHODS if name == NAMES[0] else METHODS[:1]:
        found = collectives(method, name, (8, 1))
        # A search with a reward runs to its end, and asks nothing.
        asked = set() if method == "guided beam search" else {("all-reduce", "pred")}
        assert found.keys() == asked, (name, method, found)
    assert collectives("sample", name, (8, 1)).total() == 1  # once per chunk
# One layer of decoder: attention to itself, to the prompt, feed-forward. Of the Llama's two layers only
# the feed-forward, since no mesh of 2 divides 9 heads.
LAYERS = {"realigned t5": 3, "realigned llama": 2}
for name in NAMES:
    for method in SHARDED:
        found, layers = collectives(method, name, (4, 2)), LAYERS[name]
        assert found == {
            ("all-reduce", "pred"): 1,
            ("all-reduce", "f32"): 2 * (1 + layers),
            ("all-gather", "f32"): 2,
        }, (name, method, found)
print("identical")
"""


FIRST = ["sample", "guided beam search"]
REST = ["greedy", "truncated", "best of n", "beam search", "generation"]


@pytest.mark.parametrize(
    ("names", "methods", "sharded"),
    [
        pytest.param(["realigned t5"], FIRST[:1], ["sample"], marks=pytest.mark.slow),
        pytest.param(["realigned t5", "realigned llama"], FIRST + REST, ["sample", "beam search"],
                     marks=pytest.mark.evidence),
    ],
)  # fmt: skip
def test_devices_talk_about_nothing_else(monkeypatch, names, methods, sharded):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # the programs that users run
    lists = f"NAMES = {names}\nMETHODS = {methods}\nSHARDED = {sharded}\n"
    run_on_eight_devices(lists + SCRIPT)
