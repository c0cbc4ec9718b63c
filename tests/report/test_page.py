"""The page of a folder of records: all that it says, its limits, and folders that have none."""

import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot as plt

from dera_jax import report
from dera_jax.evaluation import record_store, report_content
from dera_jax.evaluation.report_content import OutputSource, ReportContent, ReportTable
from dera_jax.report import __main__ as command
from tests.report import folders
from tests.report.folders import HOSTILE


def test_a_sweep_has_every_text_and_lambda(tmp_path):
    folder = folders.write_sweep(tmp_path)
    page = report.write(folder)
    assert page == folder / "report.html"
    found = folders.data(page)
    assert found["sources"] == [{"label": "", "lams": ["0", "0.5", "2"]}]
    for i, document in enumerate(found["documents"]):
        expected = folders.record(i, 2)
        assert (document["document"], document["human"]) == (f"<i>document</i> {i}", f"human {i}")
        texts = [x["text"] for at_lam in document["outputs"][0] for x in at_lam]
        assert texts == [x["text"] for x in expected["samples"]]
    assert len(found["documents"]) == 3
    notes = [at_lam[0]["note"] for at_lam in found["documents"][0]["outputs"][0]]
    assert notes[0] == "reward -1.00 · 5 tokens · KL 0.00 nats"
    assert notes[2] == "reward 0.00 · 5 tokens · KL 0.67 nats · truncated at the length limit"


def test_what_the_run_was_about_comes_first(tmp_path):
    folder = folders.write_sweep(tmp_path)
    report.record_about(folder, ["news (test)"], ["reference=a", "aligned=b"])
    page = report.write(folder)
    about = folders.about(page)
    assert about.pop("device") and about.pop("version").startswith("dera_jax ")
    assert about == {
        "data": "news (test)",
        "models": "reference=a, aligned=b",
        "λ": "0, 0.5, 2",
        "rewards": "LengthInRange(low=3, high=5)",
        "outputs": "3 documents, 2 samples of each at each λ, at most 17 tokens",
        "sampling": "temperature 1",
    }
    text = page.read_text()
    assert text.index('class="about"') < text.index("<h2>Findings") < text.index("<table>")


def test_means_and_findings_are_computed_from_the_records(tmp_path):
    page = report.write(folders.write_sweep(tmp_path))
    (head, *lines) = folders.tables(page)[0]
    kl = [line[head.index("KL (nats)")] for line in lines]
    assert [x.partition(" ")[0] for x in kl] == ["0.00", "0.17", "0.67"]
    assert [line[0] for line in lines] == ["0", "0.5", "2"]
    assert "Mean reward: -1.00 ±0.00 at λ = 0, 0.00 ±0.00 at λ = 2." in folders.findings(page)


def test_figures_of_the_folder_are_embedded(tmp_path):
    plt.imsave(tmp_path / "figure.png", np.zeros((4, 4)))
    page = report.write(folders.write_sweep(tmp_path))
    assert page.read_text().count('<img alt="figure" src="data:image/png;base64,') == 1


def test_texts_cannot_end_the_script_or_become_elements(tmp_path):
    folder = folders.write_sweep(tmp_path)
    table = ReportTable(HOSTILE, [[HOSTILE, "x"], ["1", HOSTILE]], HOSTILE)
    content = ReportContent(HOSTILE, [table], [HOSTILE], [OutputSource(HOSTILE, ".")])
    report_content.conclude(content, folder)
    report.record_about(folder, [HOSTILE], [HOSTILE])
    page = report.write(folder)
    text = page.read_text()
    assert HOSTILE not in text and "<b>" not in text and "<i>" not in text
    assert text.count("</script>") == 2
    found = folders.data(page)
    assert found["documents"][0]["outputs"][0][1][0]["text"] == f"{HOSTILE} 0"
    assert found["sources"][0]["label"] == HOSTILE == folders.findings(page)[0]


def test_at_most_100_documents_and_4_samples_are_shown_and_the_page_says_so(tmp_path):
    page = report.write(folders.write_sweep(tmp_path / "all", 100, 4))
    assert "Shown are" not in page.read_text()
    page = report.write(folders.write_sweep(tmp_path / "some", 101, 5))
    documents = folders.data(page)["documents"]
    assert len(documents) == 100
    assert [len(x) for x in documents[0]["outputs"][0]] == [4, 4, 4]
    expected = "the first 100 of 101 documents and the first 4 of 5 samples of each document"
    assert f"Shown are {expected}; records.jsonl has all of them." in page.read_text()
    about = folders.about(page)["outputs"]
    assert about.startswith("101 documents, 5 samples of each")


def test_sources_are_methods_or_more_lambda_and_join_by_document(tmp_path):
    """Two folders with one label are one source; best-of-n shows the best of every n samples."""
    folders.write_sweep(tmp_path / "one", 2)
    folders.write_sweep(tmp_path / "two", 3)
    sources = [OutputSource("a", "one"), OutputSource("a", "two"), OutputSource("b", "two", 2)]
    report_content.conclude(ReportContent("t", [], [], sources), tmp_path)
    found = folders.data(report.write(tmp_path))
    assert [x["label"] for x in found["sources"]] == ["a", "b"]
    first, second = found["documents"]
    assert [len(x) for x in first["outputs"][0]] == [4, 4, 4]
    assert next([x["text"] for x in at] for at in second["outputs"][1]) == ["text 1 at 0 0"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, ("has no records to report: neither shards/manifest.json nor report.json. "
                         "Expected the folder of a finished run that decoded")),
        (lambda f: f.rmdir(), "is not a folder; expected that of a finished run"),
        (lambda f: (folders.write_sweep(f) / record_store.MANIFEST).unlink(),
         "has records of a run that has not ended; start the run again"),
    ],
)  # fmt: skip
def test_other_folders_are_named(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        report.write(tmp_path)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        command.main([str(tmp_path)])


def test_a_damaged_file_is_named(tmp_path):
    folders.write_sweep(tmp_path)
    (tmp_path / report_content.FILE).write_text('{"title": "x"}')
    with pytest.raises(ValueError, match=r"report\.json: not the content of a report"):
        report.write(tmp_path)


def test_the_package_is_a_command(tmp_path, capsys):
    folders.write_sweep(tmp_path)
    command.main([str(tmp_path)])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'report.html'}\n"


def test_no_figure_library_is_imported_for_a_page(tmp_path):
    folders.write_sweep(tmp_path)
    code = "import sys; from dera_jax import api, report; report.write(sys.argv[1]); print('matplotlib' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)  # fmt: skip
    assert ended.stdout.split() == ["False"]


def test_content_survives_its_file(tmp_path, capsys):
    content = ReportContent(
        "t", [ReportTable("a", [["λ", "x"], ["0", "1"]], "note")], ["found"], [OutputSource("m", "d", 4)]
    )  # fmt: skip
    report_content.conclude(content, tmp_path)
    assert report_content.read(tmp_path) == content
    assert capsys.readouterr().out == "λ  x\n0  1\nnote\nfound\n"
    assert json.loads((tmp_path / report_content.FILE).read_text())["title"] == "t"
