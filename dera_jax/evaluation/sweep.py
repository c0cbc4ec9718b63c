"""The λ sweep: every document at every λ in one compiled call, written down as it goes.

There is one record per document with all its samples (see `shards`); the table, the CSV and the plot
are made from them, so a run that was stopped goes on where it was and loses no decoded document.

Axes: B documents at once, K = λ values x samples, D length of a document, R of a human summary, T output
length, W keywords, L bytes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from dera_jax import checks, fingerprints, json_files
from dera_jax.decoding.realign import LAMBDAS, with_lam
from dera_jax.decoding.sampling import (
    Prefilled,
    Samples,
    Sampling,
    check_sampling,
    prefill,
    sample,
    sample_from,
    sweep_rows,
)
from dera_jax.evaluation import metrics, plots, shards
from dera_jax.evaluation.tables import in_columns, write_csv
from dera_jax.models.language_model import (
    LanguageModel,
    Padded,
    Prompts,
    PyTree,
    check_padded,
    narrowed,
    sequence_keys,
)
from dera_jax.prompts import Prompt
from dera_jax.rewards import words
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import REWARD, Reward, Source, check_limit, check_source

PART = "reward_"  # begins the column of a part of the reward


@dataclasses.dataclass(frozen=True)
class Documents:
    """What to summarize.

    Attributes:
        prompts: the n documents as the model reads them.
        example_id: int32 [n], fixes each document's random draws.
        asked: the n prompts as text, with the documents uncut.
        summaries: their n human summaries.
        targets: [n, R], the summaries' tokens; None if unknown.
        keywords: uint8 [n, W, L], see `rewards.protocol.Source`; None if the task has none.
        document: [n, D], the documents' own tokens, uncut; None if unknown.

    Raises:
        ValueError: an array of another type or shape, or another number of texts.
    """

    prompts: Prompts
    example_id: np.ndarray
    asked: Sequence[Prompt]
    summaries: Sequence[str]
    targets: Padded | None = None
    keywords: np.ndarray | None = None
    document: Padded | None = None

    def __post_init__(self):
        checks.check("Documents.prompts", self.prompts, checks.instance(Prompts))
        n, _ = check_padded("Documents.prompts", self.prompts, least=1, n=None, S=None)
        checks.check_array("Documents.example_id", self.example_id, "ids", np.integer, n=n)
        known = Source(self.prompts, self.targets, self.keywords, self.document)
        check_source(known, n, "Documents")
        for name, what in (("asked", Prompt), ("summaries", str)):
            texts = getattr(self, name)
            if len(texts) != n or not all(isinstance(x, what) for x in texts):
                raise ValueError(
                    f"Documents.{name} must be n = {n} of {what.__name__}, as many as prompts."
                )

    @functools.cached_property
    def texts(self) -> list[str]:
        """The n documents."""
        return [prompt.document for prompt in self.asked]

    def prompts_of(self, rows: np.ndarray, lam: np.ndarray | None = None) -> Prompts:
        """The prompts of some of them, at λ, as wide as they need."""
        return narrowed(jax.tree.map(lambda x: x[rows], self.prompts)).replace(lam=lam)

    def source(self, rows: np.ndarray) -> Source:
        """What a reward may know of some of them."""
        some = lambda x: jax.tree.map(lambda leaf: leaf[rows], x)
        others = map(some, (self.targets, self.keywords, self.document))
        return Source(self.prompts_of(rows), *others)

    @functools.cached_property
    def sha256(self) -> str:
        """A hash of everything above."""
        arrays = (self.prompts, self.example_id, self.targets, self.keywords, self.document)
        texts = fingerprints.of_texts([x.render() for x in self.asked], self.summaries)
        return fingerprints.of_texts([fingerprints.of_arrays(arrays), texts])


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Settings of a sweep.

    Attributes:
        lams: λ values; of M aligned models each a tuple of M.
        num_samples: samples of each document at each λ.
        sampling: how to draw.
        reward: a `dera_jax.rewards` reward; None to leave texts unscored.
        batch_size: documents in one compiled call.
        seed: of all draws.

    Raises:
        ValueError: no λ or one twice, another setting out of its range, or a reward that cannot be
            reached within the length limit.
    """

    lams: tuple[float | tuple[float, ...], ...]
    num_samples: int
    sampling: Sampling
    reward: Reward | None
    batch_size: int
    seed: int

    def __post_init__(self):
        checks.check_fields(
            self,
            lams=LAMBDAS,
            num_samples=checks.whole(1),
            sampling=checks.instance(Sampling),
            reward=checks.optional(REWARD),
            batch_size=checks.whole(1),
            seed=checks.SEED,
        )
        checks.check_distinct("Sweep.lams", self.lams)
        check_sampling(self.sampling)
        if self.reward is not None:
            check_limit(self.reward, self.sampling.max_length)


def decode(
    model: LanguageModel,
    params: PyTree,
    documents: Documents,
    sweep: Sweep,
    to_text: Callable[[Sequence[int]], str],
    folder: Path,
    prefills: dict[int, Prefilled] | None = None,
    reward_params: PyTree = None,
) -> list[dict]:
    """Decodes all documents into `folder`, after those that are there already.

    Args:
        model: a realigned model.
        params: its parameters.
        documents: n of them.
        sweep: λ values and the rest.
        to_text: ids to text.
        folder: of this sweep alone.
        prefills: the encoder's work by batch, filled here: given again to a later sweep with as
            many rows of the same documents, it is not done again. None keeps nothing.
        reward_params: of the sweep's reward.

    Returns:
        One record per document: example_id, document, summary, samples (one dict per λ and sample).

    Raises:
        FileExistsError, ValueError, OSError: as `shards.write`.
    """
    judge = sweep.reward and Judge(sweep.reward, reward_params, to_text)

    def decode_batch(rows: np.ndarray) -> list[dict]:
        sample_batch = functools.partial(_sample_batch, model, params, prefills, int(rows[0]))
        return _decode_batch(sample_batch, documents, sweep, to_text, judge, rows)

    settings = {
        "sweep": fingerprints.describe(sweep),
        "model": fingerprints.describe(model),
        "parameters": fingerprints.of_arrays((params, reward_params)),
    }
    numbers = range(sweep.num_samples)
    plan = shards.Plan(
        settings,
        documents.sha256,
        documents.example_id,
        sweep.batch_size,
        samples=[(_plain(lam), number) for lam in sweep.lams for number in numbers],
    )
    return shards.write(plan, decode_batch, folder, "decoding")


def _sample_batch(model, params, prefills, batch, prompts, keys, sampling) -> Samples:
    if prefills is None:
        return sample(model, params, prompts, keys, sampling)
    if batch not in prefills:
        size = keys.shape[1], sampling.max_length
        prefills[batch] = prefill(model, params, prompts, *size)
    prefilled = prefills[batch]
    at_lam = prefilled.replace(state=with_lam(prefilled.state, prompts.lam))
    return sample_from(model, params, at_lam, keys, sampling)


def _decode_batch(sample_batch, documents, sweep, to_text, judge, rows) -> list[dict]:
    lam, numbers = sweep_rows(sweep.lams, sweep.num_samples, len(rows))
    keys = sequence_keys(sweep.seed, documents.example_id[rows], numbers)
    out = sample_batch(documents.prompts_of(rows, lam), keys, sweep.sampling)
    rewards = _rewards(judge, documents, rows, out)
    out = jax.tree.map(np.asarray, out)
    found = []
    for b, row in enumerate(rows):
        if b and row == rows[b - 1]:
            break  # filling
        samples = [
            {
                "lam": _plain(sweep.lams[k // sweep.num_samples]),
                "stream": int(numbers[k]),
                **{name: None if x is None else x[b, k].item() for name, x in rewards.items()},
                **_describe(out, b, k, to_text),
            }
            for k in range(len(numbers))
        ]
        found.append({**about(documents, row), "samples": samples})
    return found


def about(documents: Documents, row: int) -> dict[str, object]:
    """What a record says of its document."""
    record = {
        "example_id": int(documents.example_id[row]),
        "document": documents.texts[row],
        "summary": documents.summaries[row],
    }
    if documents.keywords is None:
        return record
    return record | {"keywords": keyword_texts(documents.keywords[row])}


def keyword_texts(rows: np.ndarray) -> list[str]:
    """The keywords of one document from uint8 [W, L]."""
    texts = [bytes(row).rstrip(b"\0").decode() for row in rows]
    return [text for text in texts if text]


def _plain(lam: float | Sequence[float]) -> float | list[float]:
    """As given, not as float32."""
    return float(lam) if np.ndim(lam) == 0 else [float(x) for x in lam]


def _rewards(judge: Judge | None, documents: Documents, rows: np.ndarray, out: Samples) -> dict:
    """The reward, its parts as reward_<name>, and for a length reward in_range: [B, K] each."""
    if judge is None:
        return {"reward": None}
    texts = out.tokens, out.lengths, out.finished
    if judge.reward.on_host:  # Python need not see what only fills the batch
        rows = np.unique(rows)
        texts = tuple(x[: len(rows)] for x in texts)
    found, parts = judge(documents.source(rows), [documents.texts[i] for i in rows], *texts)
    rewards = {"reward": found} | {f"{PART}{name}": values for name, values in parts.items()}
    if isinstance(judge.reward, LengthInRange):
        rewards["in_range"] = np.asarray(judge.reward.contains(out.lengths, out.finished))
    return rewards


def _describe(out: Samples, b: int, k: int, to_text: Callable) -> dict:
    """One hypothesis: its text, its length without the end token, and its summed scores."""
    length = int(out.lengths[b, k])
    scores = out.scores
    return {
        "text": to_text(out.tokens[b, k, :length]),
        "tokens": out.tokens[b, k, :length].tolist(),
        "length": length - int(out.finished[b, k]),
        "finished": bool(out.finished[b, k]),
        "kl": float(scores.kl[b, k].sum()),
        "log_prob": float(scores.log_prob[b, k].sum()),
        "sampling_log_prob": float(scores.sampling_log_prob[b, k].sum()),
        "part_log_probs": [float(x) for x in scores.part_log_prob[:, b, k].sum(-1)],
    }


def table(records: Sequence[dict]) -> list[dict]:
    """One row per λ: means over documents, with the half width of their 95 % intervals.

    Columns: reward and its parts (reward_<name>), share_in_range (for the length reward), length
    (tokens), kl (nats, from the reference, of whole texts; at temperature 1 and without truncation
    only), rouge1/2/L (F1 x 100), repetition and distinct2 (see `metrics`), and measured on the text:
    faithful (`words.faithful_share`), and where documents have keywords coverage (share of them) and
    covered (share of texts with all).
    """
    lams = sorted({_key(sample["lam"]) for record in records for sample in record["samples"]})
    return [_row(lam, records) for lam in lams]


def _key(lam: float | Sequence[float]) -> float | tuple[float, ...]:
    return tuple(lam) if isinstance(lam, Sequence) else lam


def _row(lam: float | tuple[float, ...], records: Sequence[dict]) -> dict:
    at_lam = lambda samples: [s for s in samples if _key(s["lam"]) == lam]
    return {"lam": lam} | measure([r | {"samples": at_lam(r["samples"])} for r in records])


def measure(records: Sequence[dict]) -> dict:
    """One row of `table` over all samples of the records, equally many of each document.

    Samples of `methods` have two more columns: positions (model token-positions) and within (share
    of texts that ended within a limit of words).
    """
    found = values(records)
    texts = [sample["text"] for record in records for sample in record["samples"]]
    row = {"documents": len(records), "samples": len(texts)}
    for name, groups in found.items():
        row[name], row[f"{name}_ci95"] = metrics.mean_interval(groups)
    return row | {"distinct2": metrics.distinct(texts)}


def values(records: Sequence[dict]) -> dict[str, list[list[float]]]:
    """What `measure` takes the means of: by column, for each document the values of its samples."""
    samples = [record["samples"] for record in records]
    each = lambda measure: [
        [measure(r, s) for s in group] for r, group in zip(records, samples, strict=True)
    ]
    first = samples[0][0]
    given = [x for x in first if x == "reward" or x.startswith(PART)]
    given += [x for x in ("within", "length", "kl", "positions") if x in first]
    found = {name: each(lambda r, s, name=name: float(s[name])) for name in given}
    if "in_range" in first:
        found["share_in_range"] = each(lambda r, s: float(s["in_range"]))
    found["repetition"] = each(lambda r, s: metrics.repetition(s["text"]))
    found["faithful"] = each(lambda r, s: words.faithful_share(s["text"], r["document"]))
    if "keywords" in records[0]:
        found["coverage"] = each(lambda r, s: words.coverage(s["text"], r["keywords"]))
        found["covered"] = [[float(x == 1) for x in group] for group in found["coverage"]]
    texts = [s["text"] for group in samples for s in group]
    references = [r["summary"] for r, group in zip(records, samples, strict=True) for _ in group]
    for name, flat in metrics.rouge(references, texts).items():
        found[name] = np.reshape(flat, (len(records), -1)).tolist()
    return found


def write_report(records: Sequence[dict], folder: Path) -> list[dict]:
    """Writes metrics.json, metrics.csv and sweep.png of the records; returns the table."""
    rows = table(records)
    json_files.write(folder / "metrics.json", rows)
    write_csv(folder / "metrics.csv", rows)
    plots.plot_sweep(rows, folder / "sweep.png")
    return rows


COLUMNS = {
    "λ": "lam",
    "reward": "reward",
    "in range": "share_in_range",
    "faithful": "faithful",
    "coverage": "coverage",
    "covered": "covered",
    "length": "length",
    "KL": "kl",
    "ROUGE-1": "rouge1",
    "ROUGE-2": "rouge2",
    "ROUGE-L": "rougeL",
    "distinct-2": "distinct2",
    "repetition": "repetition",
}
_ONE_DIGIT = ("length", "kl", "rouge1", "rouge2", "rougeL")
_WHOLE = ("positions",)


def format_table(rows: Sequence[dict]) -> str:
    """The table for a terminal, with ± half widths of 95 % intervals."""
    columns = {title: key for title, key in COLUMNS.items() if key in rows[0]}
    if "share_in_range" in columns.values():
        del columns["faithful"]  # a length reward's table is about lengths
    parts = [x for x in rows[0] if x.startswith(PART) and not x.endswith("_ci95")]
    columns |= {name: name for name in parts}
    return in_columns(
        [list(columns)] + [[cell(row, key) for key in columns.values()] for row in rows]
    )


def cell(row: dict, key: str) -> str:
    """A number of a row with ± half its 95 % interval, if it has one."""
    if isinstance(row[key], tuple):
        return ", ".join(f"{x:g}" for x in row[key])
    error = row.get(f"{key}_ci95")
    digits = 0 if key in _WHOLE else 1 if key in _ONE_DIGIT else 2
    text = f"{row[key]:.{digits}f}"
    return text if error is None else f"{text} ±{error:.{digits}f}"
