"""Every kind of run, made by its own functions with the shipped T5 pair, leaves a page with its texts."""

import dataclasses
import re

import pytest

import dera_jax
from dera_jax import demo_t5, main, report
from dera_jax.data.documents import Documents
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.sampling import Sampling
from dera_jax.evaluation import record_store
from dera_jax.evaluation.best_of import BestOf
from dera_jax.evaluation.choose import Choice, Rule
from dera_jax.evaluation.methods import SamplingMethod, SearchMethod
from dera_jax.evaluation.pair_sweep import PairSweep
from dera_jax.evaluation.sweep import Sweep
from dera_jax.experiments.search_experiment import SearchExperiment
from dera_jax.experiments.search_study import MethodComparison
from dera_jax.experiments.stages import Reference
from dera_jax.rewards.host import HostReward
from dera_jax.texts import TextSettings
from tests.report import folders

DOCUMENTS = [
    {
        "document": "flip(m, axis): reverses the order of the elements.",
        "summary": "flips an array.",
    },
    {"document": "sort(a): returns a sorted copy of an array.", "summary": "sorts an array."},
]
MODELS = [str(demo_t5.ASSETS / name) for name in ("reference", "aligned")]
LENGTH = 5


def words(documents, texts):
    """A reward in Python: the number of words."""
    return [float(len(text.split())) for text in texts]


@dataclasses.dataclass(frozen=True)
class Given:
    """Stands for a split: two documents that no task has."""

    label = name = "given (test)"

    def known_vocabulary(self) -> None:
        return None

    def read(self, tokenizer, reward=None) -> Documents:
        return TextSettings(template="summarize: {document}").documents(DOCUMENTS, tokenizer)


def sweep(lams: tuple, samples: int) -> PairSweep:
    settings = Sweep(lams, samples, Sampling(LENGTH), HostReward(words), batch_size=2, seed=0)
    return PairSweep(*MODELS, Given(), settings)


def comparison() -> MethodComparison:
    setting = SearchExperiment(reference=Reference(MODELS[0]), documents=Given(), max_length=LENGTH,
                               batch_size=2, seed=0, aligned=MODELS[1])  # fmt: skip
    search = Search(LENGTH, beams=2, top_k=2, reward_weight=8.0)
    methods = SamplingMethod("greedy", greedy=True), SearchMethod("DeAL", search, lam=1.0)
    return MethodComparison(setting, HostReward(words), methods)


JOBS = {  # job; its sources with their λ; the first cells of its table; a finding
    "sweep": (sweep((0.0, 2.0), 2), {"": ["0", "2"]}, ["0", "2"], "Mean reward: "),
    "best_of_n": (
        BestOf(sweep((0.0, 2.0), 2), (1, 2)),
        {"one sample": ["0", "2"], "best of 2": ["0", "2"]},
        ["0", "2", "0", "2"],
        "λ = 0: mean reward ",
    ),
    "choose": (
        Choice(sweep((0.0, 2.0), 2), Rule(max_kl=1e4), 1),
        {"": ["0", "0.6667", "1.3333", "2"]},
        ["0", "0.6667", "1.3333", "2"],
        "4 λ were evaluated by decoding 16 sequences.",
    ),
    "comparison": (
        comparison(),
        {"greedy": [""], "DeAL": [""]},
        ["greedy", "DeAL"],
        "Highest reward: ",
    ),
}


@pytest.mark.parametrize("kind", JOBS)
def test_a_job_s_folder_has_a_page(kind, tmp_path):
    job, sources, first_cells, finding = JOBS[kind]
    job.run(tmp_path)
    page = report.write(tmp_path)
    found = folders.data(page)
    assert {x["label"]: x["lams"] for x in found["sources"]} == sources
    assert [x["human"] for x in found["documents"]] == [x["summary"] for x in recorded(tmp_path)[0]]
    assert texts(found) == {
        s["text"] for records in recorded(tmp_path) for r in records for s in r["samples"]
    }
    assert all(x["note"].startswith("reward ") for x in every_output(found))
    assert [line[0] for line in folders.tables(page)[0][1:]] == first_cells
    assert any(x.startswith(finding) for x in folders.findings(page)), folders.findings(page)
    about = folders.about(page)
    assert about["rewards"] == "HostReward(fn='tests.report.test_runs.words')"
    assert "2 documents" in about["outputs"] and "at most 5 tokens" in about["outputs"]
    figures = len(list(tmp_path.glob("*.png")))
    assert page.read_text().count("<img ") == figures == 1


def recorded(folder) -> list[list[dict]]:
    stores = sorted(x.parent.parent for x in folder.rglob(record_store.MANIFEST))
    return [record_store.read(store) for store in stores]


def every_output(found: dict) -> list[dict]:
    return [
        output
        for document in found["documents"]
        for source in document["outputs"]
        for at_lam in source
        for output in at_lam
    ]


def texts(found: dict) -> set[str]:
    return {output["text"] for output in every_output(found)}


METHODS = {
    "sample": ({"lam": [0, 2], "num_samples": 2}, {"": ["0", "2"]}),
    "best_of_n": ({"n": 2, "reward": words}, {"best of n": [""]}),
    "search": ({"reward": words, "beams": 2, "top_k": 2}, {"search": [""]}),
    "evolve": (
        {"reward": words, "population": 2, "survivors": 1, "period": 3},
        {"evolution": [""]},
    ),
}


METHOD_LINES = {
    "best_of_n": "best of n (n 2, temperature 1)",
    "search": "search (beams 2, top-k 2, lookahead 0, period 1, reward-weight 1, length-penalty 0)",
    "evolve": "evolution (temperature 0.7, top-k 40, population 2, period 3, survivors 1, lookahead 0, generations 1)",
}


@pytest.fixture(scope="module")
def pair():
    return dera_jax.load(*MODELS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_strings_leaves_a_page_in_its_folder(name, pair, tmp_path):
    settings, sources = METHODS[name]
    settings = settings | {"template": "summarize: {document}", "max_length": LENGTH}
    rows = getattr(pair, name)(DOCUMENTS, folder=tmp_path, **settings)
    found = folders.data(tmp_path / report.PAGE)
    assert {x["label"]: x["lams"] for x in found["sources"]} == sources
    assert texts(found) == {row["text"] for row in rows}
    about = folders.about(tmp_path / report.PAGE)
    assert about["models"] == "reference=dera_jax/assets/reference, aligned=dera_jax/assets/aligned"
    assert about["λ"] == ("0, 2" if name == "sample" else "1")
    assert about.get("method", "") == METHOD_LINES.get(name, "")


def test_a_single_model_has_no_lambda(tmp_path):
    model = dera_jax.load(MODELS[0])
    model.sample(DOCUMENTS, max_length=LENGTH, folder=tmp_path / "a")
    model.best_of_n(DOCUMENTS, 2, words, max_length=LENGTH, folder=tmp_path / "b")
    for folder, label in (("a", ""), ("b", "best of n")):
        page = tmp_path / folder / report.PAGE
        assert folders.data(page)["sources"] == [{"label": label, "lams": [""]}]
        about = folders.about(page)
        assert about["models"] == "model=dera_jax/assets/reference" and "λ" not in about


def test_a_run_ends_with_where_its_page_is(tmp_path, capsys):
    """Of own files; a page that was removed is written when the command is started again."""
    (tmp_path / "own.jsonl").write_text('{"document": "sort(a): sorts."}\n')
    macros = {"REFERENCE": MODELS[0], "ALIGNED": MODELS[1], "MODEL_DIR": str(tmp_path / "out")}
    macros |= {"TEST": str(tmp_path / "own.jsonl"), "MAX_LENGTH": 4, "LAMBDAS": (0.0, 1.0)}
    macros |= {"REWARD": None}
    files = [f"--gin_file=gin_configs/runs/{x}.gin" for x in ("sweep", "own_files")]
    arguments = [*files, *(f"--gin.{name}={value!r}" for name, value in macros.items())]
    page = tmp_path / "out" / report.PAGE
    for _ in range(2):
        main.main(arguments)
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"documents 1; results: {tmp_path}/out/result.json; report: {page}"
        about = folders.about(page)
        assert about["data"] == str(tmp_path / "own.jsonl")
        assert about["models"] == f"REFERENCE={MODELS[0]}, ALIGNED={MODELS[1]}"
        page.unlink()


def test_a_closing_line_has_no_tables(tmp_path, capsys, monkeypatch):
    from dera_jax import configure
    from dera_jax.files import run_folder

    result = {"documents": 3, "lambda": [{"lam": 0.0}] * 60, "best_loss": 1.23456789}
    run_folder.finish(tmp_path, result)
    line = configure.closing_line(tmp_path)
    assert line == f"documents 3; best_loss 1.235; results: {tmp_path}/result.json"
    assert not re.search(r"[{\[]", line)
