"""The card of the shipped adapters: its numbers are those of the records."""

import pytest

from dera_jax import adapter_card

DOCUMENT = (
    "Parsers are slow. We train a fast parser of trees on two languages with some success in all."
)
SUMMARY = "A fast parser is trained."
LONG = "we train a fast parser of trees on two languages"


def records(**texts: tuple[str, ...]) -> list[dict]:
    """One record, whose outputs are given by λ: `at0` and `at1`."""
    samples = [
        {"lam": float(name[2:]), "sample": i, "text": text, "kl": 0.5 * i}
        for name, outputs in texts.items()
        for i, text in enumerate(outputs)
    ]
    return [{"document": DOCUMENT, "summary": SUMMARY, "samples": samples}]


def cells(row: str) -> list[float]:
    return [float(cell.split("±")[0]) for cell in row.strip("|").split("|")[1:]]


def test_a_row_has_means_over_documents_and_samples():
    both = records(at1=(LONG, "zebras sing")) * 2
    found = cells(adapter_card.row("λ = 1", adapter_card.outputs(both, 1.0)))
    # Half of the outputs are of 10 to 22 words, and the content words of one of them are all found.
    assert found[:3] == [0.5, 0.5, 6.0]
    # Of five words of the summary and ten of the output, stems of four agree (a, fast, parser, train).
    assert found[3] == pytest.approx(100 * 0.5 * (2 * 4 / (5 + 10)), abs=0.06)


def test_baselines_are_sentences_of_the_abstract_and_the_human_summary():
    first, last, human = map(cells, adapter_card.baselines(records(at0=("x",)) * 2))
    assert first[:3] == [1, 0, 3] and last[2] == 15
    assert human[2] == 5 and human[3:] == [100, 100, 100]


def test_differences_are_of_the_same_documents():
    pair = records(at0=("zebras sing",), at1=(LONG,)) * 2
    found = adapter_card.differences(pair)
    assert "content words found +1.000" in found and "10 to 22 words +1.000" in found
