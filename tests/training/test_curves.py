"""The picture of a run's reports."""

import json

import matplotlib.image
import numpy as np
import pytest

from dera_jax.training import curves, metric_log


def test_each_run_gets_a_panel(tmp_path):
    losses = [{"step": s, "training/loss": 1 / s} for s in range(1, 100)]
    rewards = [{"step": s, "training/reward": -1.0, "training/full_kl": s} for s in (1, 2)]
    for name, rows in (("sft", losses), ("ppo", rewards)):
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / metric_log.FILE).write_text(text)
    curves.plot([tmp_path / "sft", tmp_path / "ppo"], tmp_path / "curves.png")
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.shape[1] == pytest.approx(2 * 5 * 110, abs=2)
    half = picture.shape[1] // 2
    for panel in (picture[:, :half], picture[:, half:]):
        # A line of the palette's first colour was drawn in either half.
        assert np.any(np.abs(panel[..., :3] - [0.12, 0.47, 0.71]).max(axis=-1) < 0.02)


def test_a_folder_without_reports_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no reports"):
        curves.plot([tmp_path], tmp_path / "curves.png")
