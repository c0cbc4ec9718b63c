"""The seqio tasks of ACLSum yield the examples that scripts without TensorFlow read."""

import pytest

from dera_jax.data import aclsum
from dera_jax.tasks import aclsum as tasks_aclsum
from tests.texts import asked, read

TASKS = {
    "aclsum": (aclsum.ASPECTS, ("abstract",)),
    "aclsum_outcome": (("outcome",), ("abstract",)),
    "aclsum_conclusion": (aclsum.ASPECTS, ("conclusion",)),
    "aclsum_challenge_introduction": (("challenge",), ("introduction",)),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_task_has_the_examples_of_the_reader(name, split):
    expected = aclsum.examples(split, *TASKS[name])
    found = read(name, split, 40_000, 1000)
    assert found.documents == [x.document for x in expected]
    assert found.summaries == [x.summary for x in expected]
    assert asked(found) == [x.template.replace("{document}", x.document) for x in expected]
    assert found.example_id.tolist() == [x.example_id for x in expected]
    assert found.notes == {
        "paper": [x.paper for x in expected], "aspect": [x.aspect for x in expected]
    }  # fmt: skip


def test_registering_an_unknown_aspect_raises():
    with pytest.raises(ValueError, match="the aspects must be .* found .*'method'"):
        tasks_aclsum.register("aclsum_method", ("method",))
