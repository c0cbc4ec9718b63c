"""Tasks of texts as T5X reads them, against ids told by hand: byte b of a text has the id b + 3."""

import importlib

import pytest
import seqio

import dera_jax.tasks  # noqa: F401 (registers those that are taken up)
from dera_jax.data.seqio_tasks import yields_text
from dera_jax.tasks import jsonl, preferences

PLAIN, DIALOGUES = "test_t5x_texts", "test_t5x_dialogues"


@pytest.fixture(scope="module")
def module():
    """Imported, and then everything that it registered is forgotten."""
    rows = lambda split: {"document": ["abcdef", "gh"], "summary": ["xyz", "z"]}
    pairs = lambda split: {"document": ["abcdef"], "chosen": ["xyz"], "rejected": ["uvw"]}
    before = set(seqio.TaskRegistry.names())
    jsonl.register_pairs(PLAIN, rows, ["train"], "{document}!")
    preferences.register_pairs(DIALOGUES, pairs, ["train"], "{document}", keep_end=True)
    found = importlib.import_module("dera_jax.t5x.tasks")
    if "xsum_ids" not in seqio.TaskRegistry.names():  # forgotten when this fixture was left before
        found = importlib.reload(found)
    for name in (PLAIN, DIALOGUES):
        if f"{name}_ids" in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(f"{name}_ids")
        found.register(f"{name}_ids", name, seqio.ByteVocabulary())
    yield found
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


def ids_of(name: str, **lengths) -> list[dict[str, list[int]]]:
    task = seqio.get_mixture_or_task(f"{name}_ids")
    rows = task.get_dataset(lengths, "train", shuffle=False).as_numpy_iterator()
    return [{x: row[x].tolist() for x in task.output_features} for row in rows]


def spelt(text: str) -> list[int]:
    return [x + 3 for x in text.encode()] + [1]


def test_every_task_of_texts_is_there_over_t5_s_vocabulary(module):
    names = seqio.TaskRegistry.names()
    for name in ("xsum", "commongen", "newswire_pairs", "hh_rlhf"):
        assert yields_text(seqio.TaskRegistry.get(name)) and f"{name}_ids" in names
    features = seqio.TaskRegistry.get("newswire_pairs_ids").output_features
    assert set(features) == {"inputs", "targets", "rejected"}
    assert all(x.vocabulary == module.t5_vocabulary() and x.add_eos for x in features.values())
    assert "prose_ids" not in names  # it yields ids


def test_ids_end_and_what_is_too_long_is_cut(module):
    assert ids_of(PLAIN, inputs=9, targets=9) == [
        {"inputs": spelt("abcdef!"), "targets": spelt("xyz")},
        {"inputs": spelt("gh!"), "targets": spelt("z")},
    ]
    assert ids_of(PLAIN, inputs=4, targets=2) == [
        {"inputs": spelt("abc"), "targets": spelt("x")},
        {"inputs": spelt("gh!"), "targets": spelt("z")},
    ]


def test_dialogues_lose_their_beginning(module):
    found = {"targets": spelt("xy"), "rejected": spelt("uv")}
    lengths = {"targets": 3, "rejected": 3}
    assert ids_of(DIALOGUES, inputs=4, **lengths) == [found | {"inputs": spelt("def")}]
    assert ids_of(DIALOGUES, inputs=7, **lengths) == [found | {"inputs": spelt("abcdef")}]


def test_a_task_that_yields_ids_is_refused(module):
    with pytest.raises(ValueError, match="task 'prose' yields ids already"):
        module.register("test_t5x_prose", "prose", seqio.ByteVocabulary())
