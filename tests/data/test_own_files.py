"""A user's own files without a task: what is read, what is said of mistakes, and every run on them."""

import csv
import dataclasses
import gzip
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pyarrow import Table, parquet

from dera_jax import main
from dera_jax.checkpoints import loading
from dera_jax.data import tables, task_data
from dera_jax.data.encoding import Sizes
from dera_jax.data.own_files import NoFileError, OwnFiles, own_files
from dera_jax.data.splits import Split
from dera_jax.data.task_data import TaskData
from dera_jax.prompts import SUMMARIZE
from dera_jax.tasks import jsonl, preferences
from tests import words
from tests.test_gin_settings import RUNS
from tests.texts import BYTES, asked

ROOT = Path(__file__).resolve().parents[2]
SIZES = Sizes(60, 24)
ROWS = [
    {"document": "A river, and\nits \"banks\".", "summary": "Größe.", "keywords": ["a river", "b"],
     "weight": 0.5},
    {"document": "Solar power.", "summary": "Power.", "keywords": [], "weight": 2.0},
    {"document": "Solar power.", "summary": "Sun.", "keywords": ["sun"], "weight": 1.0},
]  # fmt: skip
PAIRS = [
    {"document": f"News {i // 2}.", "chosen": f"Good {i}.", "rejected": f"Bad {i}.", "source": "x"}
    for i in range(4)
]
KINDS = ("jsonl", "jsonl.gz", "csv", "csv.gz", "parquet")
_numbers = itertools.count()


def write(folder: Path, kind: str, rows: list[dict]) -> str:
    """Writes rows as a file of a kind."""
    path = folder / f"{next(_numbers)}.{kind}"
    if kind == "parquet":
        parquet.write_table(Table.from_pylist(rows), path)
        return str(path)
    opened = gzip.open if kind.endswith(".gz") else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if kind.startswith("jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            cells = lambda row: {k: ";".join(x) if k == "keywords" else x for k, x in row.items()}
            writer.writerows(map(cells, rows))
    return str(path)


def assert_same(found, expected):
    for field in dataclasses.fields(found):
        a, b = (getattr(x, field.name) for x in (found, expected))
        if field.name == "document":
            a, b = a[np.arange(len(found))], b[np.arange(len(expected))]
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [ROWS, PAIRS], ids=["summaries", "pairs"])
def test_a_file_gives_the_examples_of_a_task(tmp_path, kind, rows):
    """With the same ids, so that both routes draw the same samples."""
    name = f"own_{next(_numbers)}"
    register = (jsonl if rows is ROWS else preferences).register
    register(name, {"train": write(tmp_path, "jsonl", rows)}, "say {document}!")
    files = OwnFiles(train=write(tmp_path, kind, rows), template="say {document}!")
    found = TaskData(None, 60, 24, 2, files=files).encoded_by(BYTES).read("train")
    assert_same(found, task_data.epoch(name, "train", BYTES, SIZES))
    assert found.documents == [row["document"] for row in rows]
    assert asked(found) == [f"say {row['document']}!" for row in rows]
    assert (found.rejected is None) == (found.weight is not None) == (rows is ROWS)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_with_other_names(tmp_path, kind):
    rows = [{"article": x["document"], "highlights": x["summary"], "document": "no"} for x in ROWS]
    files = OwnFiles(
        test=write(tmp_path, kind, rows), columns={"document": "article", "summary": "highlights"}
    )
    documents = Split(None, "test", 60, files=files).read(BYTES)
    expected = Split(None, "test", 60, files=OwnFiles(test=write(tmp_path, kind, ROWS))).read(BYTES)
    assert sorted(documents.texts) == sorted(x["document"] for x in ROWS)
    assert documents.summaries == expected.summaries
    np.testing.assert_array_equal(documents.example_id, expected.example_id)
    absent = dataclasses.replace(files, columns={"document": "body"})
    found = re.escape("no column 'body', which is named for 'document'; found ['article', 'doc")
    with pytest.raises(ValueError, match=f"{files.test}, (line|row) .: {found}"):
        absent.epoch("test", BYTES, SIZES)


def test_only_supervised_training_needs_summaries(tmp_path):
    path = write(tmp_path, "csv", [{"document": "a"}, {"document": "b"}])
    data = TaskData(None, 60, 24, 2, files=OwnFiles(train=path, validation=path))
    assert data.encoded_by(BYTES).read("train").summaries == ["", ""]
    assert "targets" not in next(data.encoded_by(BYTES).batches(0, 0))  # a reward may ask for them
    assert Split(None, "train", 60, files=data.files).read(BYTES).targets is None
    data.check("validation")
    message = f"^{path}, line 2: no 'summary'; supervised training needs the columns document, summ"
    with pytest.raises(ValueError, match=message):
        data.check("validation", summaries=True)
    pairs = OwnFiles(train=write(tmp_path, "csv", PAIRS))  # the chosen responses are summaries
    TaskData(None, 60, 24, 2, files=pairs).check(summaries=True)
    no_documents = OwnFiles(test=write(tmp_path, "jsonl", [{"text": "a"}]))
    with pytest.raises(ValueError, match="line 1: no 'document'; every run needs.*found text. COL"):
        Split(None, "test", 60, files=no_documents)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("document,summary\na,b\nc\n", "line 3: 1 cells, expected 2 (document, summary)"),
        ("document,summary\na,b\nc,d,e\n", "line 3: 3 cells, expected 2"),
        ('document,summary\n"a\nb",c\nd\n', "line 4: 1 cells"),
        ('document,summary\n"a"b,c\n', "line 2: not valid CSV"),
        ("document,summary\n\na,b\n", "line 2: the line is blank, but other lines follow"),
        ("document,document\na,b\n", "line 1: expected the names of the columns, each once"),
        ("document,summary\n", "the file has a line of column names, but no row"),
        ("document,summary\na,\n", "line 2: 'summary' is empty"),
        ("document,summary,weight\na,b,much\n", "line 2: 'weight' must be a number, found 'much'"),
        ("", "the file is empty"),
        (b"document,summary\nGr\xf6\xdfe,b\n", "line 2: not UTF-8 (byte 0xf6 at column 3)"),
    ],
)
def test_a_bad_line_of_csv_is_named(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(f"{path}") + "[:,] " + re.escape(message)):
        OwnFiles(test=str(path)).epoch("test", BYTES, SIZES)


def test_a_document_may_be_longer_than_the_csv_module_expects(tmp_path):
    path = write(tmp_path, "csv", [{"document": "a" * 200_000}])
    assert tables.first_row(path) == (f"{path}, line 2", {"document": "a" * 200_000})


def test_parquet_files_that_cannot_be_read(tmp_path, monkeypatch):
    bad = tmp_path / "bad.parquet"
    bad.write_text('{"document": "a"}\n')
    with pytest.raises(ValueError, match=f"{bad}: not a Parquet file, or damaged: "):
        tables.first_row(str(bad))
    parquet.write_table(Table.from_pylist([{"document": "a"}]).slice(1), bad)
    with pytest.raises(ValueError, match=f"{bad}: the file has no row"):
        tables.first_row(str(bad))
    path = write(tmp_path, "parquet", [{"document": "a", "summary": "b"}, {"document": "c"}])
    with pytest.raises(ValueError, match="row 2: no 'summary', unlike the lines before"):
        OwnFiles(test=path).epoch("test", BYTES, SIZES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=f"{path}: .*pyarrow: pip install pyarrow$"):
        tables.first_row(path)


def test_what_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    path = write(tmp_path, "jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    looked = f"looked for {tmp_path}/a/b.csv, since the working directory is {tmp_path}$"
    with pytest.raises(FileNotFoundError, match=f"^a/b.csv: no such file; {looked}"):
        OwnFiles(train="a/b.csv")
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/b.csv: no such file$"):
        OwnFiles(train=f"{tmp_path}/b.csv")
    with pytest.raises(ValueError, match="is a folder"):
        OwnFiles(train=str(tmp_path))
    with pytest.raises(ValueError, match="'say it' has no slot {document}"):
        OwnFiles(train=path, template="say it")
    for columns in ({"text": "a"}, {"document": 3}, ("document", "a")):
        with pytest.raises(ValueError, match="OwnFiles.columns must be names of columns by some"):
            OwnFiles(train=path, columns=columns)
    with pytest.raises(ValueError, match="TEMPLATE and COLUMNS are those of your own files"):
        own_files(template="{document}")
    assert own_files() is None


def test_the_template_of_a_models_training_is_used(tmp_path, capsys):
    """As by training on a model that was trained on files; another one is given by name."""
    for path in (ROOT / "dera_jax/assets/reference").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "card.json").unlink()
    (tmp_path / "card.json").write_text('{"data": {"files": {"template": "say {document}"}}}')
    path = write(tmp_path, "jsonl", ROWS)
    assert own_files(path, models=(str(tmp_path), None)).template == "say {document}"
    assert "prompts are written as in training: 'say {document}'" in capsys.readouterr().err
    again = own_files(path, models=(str(tmp_path),))  # said once, and read anew
    assert again.template == "say {document}" and not capsys.readouterr().err
    (tmp_path / "card.json").write_text('{"data": {"files": {"template": "now {document}"}}}')
    assert own_files(path, models=(str(tmp_path),)).template == "now {document}"
    assert (
        own_files(path, template="a {document}", models=(str(tmp_path),)).template == "a {document}"
    )
    assert own_files(path, models=(str(ROOT / "dera_jax/assets/reference"),)).template == SUMMARIZE
    with pytest.raises(ValueError, match="TEMPLATE"):
        own_files(path, template="", models=(str(tmp_path),))


def test_pretraining_reads_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = ["--gin_file=gin_configs/runs/pretrain.gin"]
    given = bound(TRAIN=write(tmp_path, "jsonl", ROWS), MODEL_DIR=f"{tmp_path}/out")
    with pytest.raises(SystemExit, match="--gin.TRAIN: this run does not read this binding"):
        main.main(files + given)


def test_a_run_needs_the_files_that_it_reads(tmp_path):
    data = TaskData(None, 8, 8, 2, files=OwnFiles(train=write(tmp_path, "jsonl", ROWS)))
    with pytest.raises(NoFileError, match="'validation' is read.*add --gin.VALIDATION=..."):
        data.check("validation")
    with pytest.raises(NoFileError, match="the splits train, validation, test; found 'tests'"):
        Split(None, "tests", 8, files=data.files)
    with pytest.raises(
        ValueError, match="line 1: no 'chosen'; preference pairs need the columns document, chosen"
    ):
        data.check(pairs=True)
    pairs = OwnFiles(train=write(tmp_path, "parquet", PAIRS))
    dataclasses.replace(data, files=pairs).check(pairs=True)


def bound(**macros: object) -> list[str]:
    return [f"--gin.{name}={value!r}" for name, value in macros.items()]


def arguments(run: str, model: str = "no/model") -> list[str]:
    files, bindings = OF_TASKS[run]
    files = [f"--gin_file=gin_configs/{file}.gin" for file in files]
    bindings = {x: value.replace("no/model", model) for x, value in bindings.items() if x != "TASK"}
    return files + [f"--gin.{name}={x}" for name, x in bindings.items()]


MODEL = {"REFERENCE": "'no/model'", "INITIAL_MODEL": "'no/model'"}
OF_TASKS = {name: run for name, run in RUNS.items() if run[0][0] == f"runs/{name}"} | {
    "offline": (["runs/offline"], {"REFERENCE": MODEL["REFERENCE"]}),
    "dpo": (["runs/dpo"], {"REFERENCE": MODEL["REFERENCE"]}),
    "reward_model": (["runs/reward_model"], {"INITIAL_MODEL": MODEL["INITIAL_MODEL"]}),
    "statistics": (
        ["runs/statistics", "rewards/length_and_faithfulness"],
        {"REFERENCE": MODEL["REFERENCE"], "LOW": "5", "HIGH": "8"},
    ),
}
READ = {
    "train": ("sft", "ppo", "warm_start", "offline", "dpo", "reward_model", "lengths", "statistics"),
    "validation": ("choose", "sft", "offline", "dpo", "reward_model"),
    "test": ("sample", "sweep", "best_of_n", "beam_search", "evolution"),
}  # fmt: skip


@pytest.mark.parametrize("run", OF_TASKS)
def test_every_run_reads_its_splits_and_names_the_one_that_is_missing(run, tmp_path, monkeypatch):
    """No parameters are read before, and no other split is asked for."""
    monkeypatch.chdir(ROOT)
    read = [split for split, runs in READ.items() if run in runs]
    files = {split.upper(): write(tmp_path, "csv", PAIRS) for split in READ}
    for split in read:
        given = {name: path for name, path in files.items() if name != split.upper()}
        given |= {"MODEL_DIR": f"{tmp_path}/out"}
        with pytest.raises(SystemExit) as stopped:
            main.main(arguments(run, "dera_jax/assets/reference") + bound(**given))
        said = str(stopped.value)
        assert said.startswith(f"error: gin_configs/{OF_TASKS[run][0][0]}.gin"), said
        assert f": the split {split!r} is read, but no file" in said and split.upper() in said, said
    with pytest.raises(SystemExit, match="no/model"):  # data are there, the model is not
        given = {split.upper(): files[split.upper()] for split in read}
        main.main(arguments(run) + bound(**given, MODEL_DIR=f"{tmp_path}/out"))


@pytest.mark.parametrize("run", ["sft", "dpo", "ppo", "sweep"])
def test_a_missing_column_is_named_before_models_are_loaded(run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(loading, "read_arrays", None)
    rows = {"sft": [{"document": "a"}], "dpo": ROWS}.get(run, [{"text": "a"}])
    column = {"sft": "summary", "dpo": "chosen"}.get(run, "document")
    files = {split.upper(): write(tmp_path, "jsonl", rows) for split in READ}
    with pytest.raises(SystemExit, match=f"{tmp_path}.*, line 1: no '{column}'"):
        main.main(
            arguments(run, "dera_jax/assets/reference") + bound(MODEL_DIR=f"{tmp_path}/o", **files)
        )


WITHOUT = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "clu", "t5x"):
    sys.modules[name] = None  # as if it were not installed
from dera_jax import main
main.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_runs_without_tensorflow_from_another_folder(tmp_path):
    reference = words.drawn("t5")
    reference.save(tmp_path / "model", reference.params, {})
    for split in ("train", "validation", "test"):
        path = tmp_path / f"{split}.csv"
        path.write_text("document,summary\n" + "".join(f"{x},{x}\n" for x in words.WORDS))
    sizes = {"INPUTS": 24, "BATCH_SIZE": 4, "TRAIN": "train.csv", "VALIDATION": "validation.csv"}
    run = lambda name, **macros: subprocess.run(
        [sys.executable, "-c", WITHOUT, f"--gin_file=gin_configs/runs/{name}.gin", *bound(**macros)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    training = {
        "TARGETS": 8,
        "STEPS": 2,
        "WARMUP_STEPS": 1,
        "EVAL_PERIOD": 2,
        "DECODED_EXAMPLES": 0,
    }
    done = run("sft", INITIAL_MODEL="model", MODEL_DIR="sft", **sizes, **training)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "sft" / "best" / "card.json").read_text())
    assert card["data"]["files"]["train"] == "train.csv" and "task" not in card["data"]
    decoding = {"INPUTS": 24, "BATCH_SIZE": 4, "TEST": "test.csv", "MAX_LENGTH": 4, "DOCUMENTS": 2}
    done = run("sample", REFERENCE="model", ALIGNED="sft/best", MODEL_DIR="samples", **decoding)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "samples" / "records.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["document"] in words.WORDS
