"""metrics.jsonl: each step once, whatever was killed, and only finite numbers."""

import sys
import types

import pytest

from dera_jax.training import metric_log
from dera_jax.training.metric_log import FILE, MetricWriter


def steps(folder) -> list[int]:
    return [row["step"] for row in metric_log.read(folder)]


def test_a_resumed_run_reports_each_step_once(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in (10, 20, 30):
        writer.write(step, {"training/loss": 1.0 / step})
    with (tmp_path / FILE).open("a") as lines:
        lines.write('{"step": 40, "training')  # killed while writing
    (tmp_path / f"{FILE}.__lock").write_bytes(b"{")  # or while rewriting
    assert steps(tmp_path) == [10, 20, 30]
    writer = MetricWriter(tmp_path, 20)
    writer.write(30, {"training/loss": 0.5})
    assert steps(tmp_path) == [10, 20, 30]
    assert metric_log.read(tmp_path)[-1]["training/loss"] == 0.5


def test_a_metric_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(FloatingPointError, match=r"metrics\.jsonl: \[?.*training/kl is nan"):
        MetricWriter(tmp_path, 0).write(10, {"training/kl": float("nan")})
    assert steps(tmp_path) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', "\x00"])
def test_a_broken_line_is_named(line, tmp_path):
    (tmp_path / FILE).write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
        MetricWriter(tmp_path, 0)


def test_what_cannot_be_appended_names_the_file(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        writer.write(10, {"training/loss": 1.0})


def test_weights_and_biases_gets_the_metrics_when_asked_for(tmp_path, monkeypatch):
    """By a stand-in for the package; a resumed run is the same run there."""
    calls = []

    class Run:
        def define_metric(self, name, step_metric):
            calls.append((name, step_metric))

        def log(self, values):
            calls.append(values)

    started = []
    module = types.SimpleNamespace(init=lambda **given: started.append(given) or Run())
    monkeypatch.setitem(sys.modules, "wandb", module)
    MetricWriter(tmp_path, 0).write(10, {"training/loss": 0.5})
    assert not started  # not asked for
    monkeypatch.setenv(metric_log.PROJECT, "dera")
    for _ in range(2):
        MetricWriter(tmp_path, 10).write(20, {"training/loss": 0.25})
    assert calls == 2 * [("*", "step"), {"step": 20, "training/loss": 0.25}]
    assert [x["project"] for x in started] == ["dera", "dera"]
    assert started[0]["id"] == started[1]["id"] and started[0]["resume"] == "allow"


def test_weights_and_biases_that_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(metric_log.PROJECT, "dera")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="WANDB_PROJECT=dera asks for.*pip install wandb"):
        MetricWriter(tmp_path, 0)
