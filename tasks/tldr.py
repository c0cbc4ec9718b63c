"""Registers Reddit TL;DR (Stiennon et al., 2020, "Learning to summarize from human feedback", arXiv
2009.01325).

Both tasks read OpenAI's files, renamed, from the folder (local or `gs://`) that `DERA_JAX_TLDR`
names:

- `tldr`, posts with the authors' own summaries: `train.jsonl`, `validation.jsonl` (published as
  `valid.jsonl`) and `test.jsonl` of the filtered set, lines of `{"subreddit", "title", "post",
  "summary"}`.
- `tldr_pairs`, comparisons: `comparisons_train.jsonl`, `comparisons_validation.jsonl` and
  `comparisons_test.jsonl`, lines of `{"info": {"subreddit", "title", "post"}, "summaries":
  [{"text"}, {"text"}], "choice"}`, where `choice`, 0 or 1, is the index of the preferred summary.
  The published files are divided into batches, whose lines name their split in the key `split`
  (`train`, `valid1`, `valid2`); join the lines of each split. The batches about news articles have
  another `info`, which raises ValueError.

The inputs are the paper's prompt `SUBREDDIT: r/... TITLE: ... POST: ... TL;DR:`, with an empty line
between the parts. The document is all but "TL;DR:", which is kept if a post is truncated. White
space around strings is removed. Other keys are ignored.

TensorFlow Datasets has neither data set; its `reddit` and `reddit_tifu` are other data sets.

Use `register` and `register_comparisons` for your own folder, under another name.
"""

import functools
import os

import seqio

from dera_jax.data import text_columns
from dera_jax.tasks import jsonl, preferences

SPLITS = ("train", "validation", "test")
TEMPLATE = "{document}\n\nTL;DR:"


def register(name: str, folder: str, leave_out_bad: bool = False) -> seqio.Task:
    """Registers a task over a folder of posts with summaries.

    Args:
        name: see `jsonl.register`.
        folder: with `train.jsonl`, `validation.jsonl` and `test.jsonl`.
        leave_out_bad: skip invalid lines with a warning, instead of raising an error.

    Raises:
        ValueError: the name is already registered. Reading a split raises as `text_columns.read_summaries`.
    """
    rows = functools.partial(_posts, folder, leave_out_bad)
    return jsonl.register_pairs(name, rows, SPLITS, TEMPLATE)


def register_comparisons(name: str, folder: str, leave_out_bad: bool = False) -> seqio.Task:
    """Registers a preference task over a folder of comparisons (`comparisons_train.jsonl`, ...).

    Arguments as `register`; raises as `preferences.register`.
    """
    rows = functools.partial(_comparisons, folder, leave_out_bad)
    return preferences.register_pairs(name, rows, SPLITS, TEMPLATE)


def prompt(row: dict[str, object], where: str) -> str:
    """Return the document of a post; raises as `text_columns.text_of`."""
    subreddit, title, post = (
        text_columns.text_of(row, key, where).strip() for key in ("subreddit", "title", "post")
    )
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}"


def _posts(folder: str, leave_out_bad: bool, split: str) -> dict[str, list[str]]:
    path = os.path.join(folder, f"{split}.jsonl")
    return text_columns.read_columns(path, _parse_post, leave_out_bad)


def _comparisons(folder: str, leave_out_bad: bool, split: str) -> dict[str, list[str]]:
    path = os.path.join(folder, f"comparisons_{split}.jsonl")
    return text_columns.read_columns(path, _parse_comparison, leave_out_bad)


def _parse_post(row: dict[str, object], where: str) -> list[dict[str, str]]:
    summary = text_columns.text_of(row, "summary", where).strip()
    return [{"document": prompt(row, where), "summary": summary}]


def _parse_comparison(row: dict[str, object], where: str) -> list[dict[str, str]]:
    info, summaries, choice = (row.get(key) for key in ("info", "summaries", "choice"))
    if not isinstance(info, dict):
        raise TypeError(f"{where}: 'info' must be an object about the post, found {info!r}")
    if (
        not isinstance(summaries, list)
        or len(summaries) != 2
        or not all(isinstance(summary, dict) for summary in summaries)
    ):
        raise TypeError(f"{where}: 'summaries' must be a list of two objects, found {summaries!r}")
    if choice not in (0, 1) or not isinstance(choice, int) or isinstance(choice, bool):
        raise ValueError(f"{where}: 'choice' must be 0 or 1, found {choice!r}")
    texts = [text_columns.text_of(summary, "text", where).strip() for summary in summaries]
    return [text_columns.pair(prompt(info, where), texts[choice], texts[1 - choice], where)]


def _default_folder(task: str) -> str:
    return jsonl.folder_of("DERA_JAX_TLDR", task, "the files that `dera_jax.tasks.tldr` describes")


jsonl.register_pairs(
    "tldr",
    lambda split: _posts(_default_folder("tldr"), False, split),
    SPLITS,
    TEMPLATE,
)
preferences.register_pairs(
    "tldr_pairs",
    lambda split: _comparisons(_default_folder("tldr_pairs"), False, split),
    SPLITS,
    TEMPLATE,
)
