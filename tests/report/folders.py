"""Folders of records written without a model, and what a page shows of them."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import record_store
from dera_jax.evaluation.sweep import Sweep
from dera_jax.files import fingerprints
from dera_jax.rewards.length import LengthInRange

HOSTILE = "</script><script>document.title = 'owned'</script><b>bold</b> & \"quoted\" ${name}"
LAMS = (0.0, 0.5, 2.0)


def sample(lam: float, number: int, text: str) -> dict:
    measured = {"reward": -1.0 if lam < 2 else 0.0, "length": len(text.split()), "kl": lam / 3}
    return {"lam": lam, "sample": number, "text": text, "finished": lam < 2} | measured


def record(i: int, samples: int, lams: Sequence[float] = LAMS) -> dict:
    texts = {lam: f"text {i} at {lam:g}" for lam in lams} | {0.5: HOSTILE}
    return {
        "example_id": i,
        "document": f"<i>document</i> {i}",
        "summary": f"human {i}",
        "samples": [sample(lam, n, f"{texts[lam]} {n}") for lam in lams for n in range(samples)],
    }


def write_sweep(folder: Path, documents: int = 3, samples: int = 2) -> Path:
    """Writes the records of a sweep through the store, as `sweep.decode` does."""
    sweep = Sweep(LAMS, samples, Sampling(17), LengthInRange(3, 5), batch_size=50, seed=0)
    settings = {"sweep": fingerprints.describe(sweep)}
    ids = np.arange(documents)
    plan = record_store.Plan(settings, "hash", ids, sweep.batch_size, sweep.hypotheses)
    decode = lambda rows: [record(int(i), samples) for i in np.unique(rows)]
    record_store.write(plan, decode, folder, "decoding")
    return folder


def data(page: Path) -> dict:
    """The JSON that the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)  # fmt: skip
    return json.loads(found[1])


def about(page: Path) -> dict[str, str]:
    """The lines that say what the run was about."""
    lines = page.read_text().partition('class="about">')[2].partition("</dl>")[0]
    return {k: html.unescape(v) for k, v in re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", lines)}


def tables(page: Path) -> list[list[list[str]]]:
    """The cells of all tables."""
    cells = lambda row: [html.unescape(x) for x in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
    found = re.findall("<table>(.*?)</table>", page.read_text(), re.DOTALL)
    return [[cells(row) for row in re.findall("<tr>(.*?)</tr>", table)] for table in found]


def findings(page: Path) -> list[str]:
    return [html.unescape(x) for x in re.findall("<li>(.*?)</li>", page.read_text())]
