"""metrics.jsonl: each step once, whatever was killed, and only finite numbers."""

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
