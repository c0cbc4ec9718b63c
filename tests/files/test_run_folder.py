"""Run folders: whose they are, of which version, and what a killed write leaves."""

import json
import re
from pathlib import Path

import pytest

from dera_jax import __version__, configure
from dera_jax.files import lock, run_folder
from dera_jax.files.run_folder import CONFIG, RESULT
from tests.test_main import call, source  # noqa: F401 (fixtures)

SETTINGS = "STEPS = 3\n"


def claim(folder: Path, config: str = SETTINGS) -> None:
    with run_folder.claim(folder, config):
        pass


def test_the_first_line_of_a_config_names_the_version_and_the_rest_is_short(call):  # noqa: F811
    text = (call() / CONFIG).read_text()
    assert text.startswith(f"# dera_jax {__version__}, run folder format 4\n")
    assert len(text) < 2000 and "====" not in text


def test_settings_of_every_run_file_are_short(tmp_path):
    """Gin rules off its sections with lines as long as a line may be."""
    bindings = ["REFERENCE = 'a'", "ALIGNED = 'b'", f"MODEL_DIR = '{tmp_path}'"]
    configure.parse(["gin_configs/runs/sweep.gin"], bindings, ["."])
    text = configure._settings()
    assert len(text) < 10_000
    assert (
        "TEMPERATURE = 1.0\n" in text and "LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)" in text
    )


@pytest.mark.parametrize(
    ("first", "version"),
    [("", "0.1.0"), ("# dera_jax 0.3.0, run folder format 5\n", "0.3.0")],
)
def test_a_folder_of_another_format_is_refused_by_its_version(first, version, tmp_path):
    (tmp_path / CONFIG).write_text(f"{first}{SETTINGS}")
    (tmp_path / RESULT).write_text("{}")
    with pytest.raises(
        FileExistsError, match=rf"made by dera_jax {re.escape(version)} and.*finish"
    ):
        claim(tmp_path)


def test_a_folder_of_another_version_with_this_format_is_resumed(tmp_path):
    (tmp_path / CONFIG).write_text(f"# dera_jax 0.2.9, run folder format 4\n{SETTINGS}")
    (tmp_path / "records.jsonl").write_text("")
    claim(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, RESULT, lock.KEY, "metrics.jsonl"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_write_killed_in_its_middle_leaves_a_folder_that_resumes(name, begun, call, tmp_path):  # noqa: F811
    """Its draft is beside the file; the file itself is the old one or none."""
    out = tmp_path / "out"
    if begun:
        call()
        (out / RESULT).unlink()
    out.mkdir(exist_ok=True)
    (out / f"{name}.__lock").write_bytes(b'{"tot')
    call()
    assert json.loads((out / RESULT).read_text()) == {"total": 10}
    assert not (out / lock.KEY).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'"a"'])
def test_a_broken_result_is_named_with_what_to_do(content, call):  # noqa: F811
    (call() / RESULT).write_bytes(content)
    with pytest.raises(SystemExit, match=r"error: .*result\.json.*; remove it"):
        call()


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_broken_config_is_named(content, call):  # noqa: F811
    (call() / CONFIG).write_bytes(content)
    with pytest.raises(SystemExit, match=r"error: .*config\.gin: damaged"):
        call()


@pytest.mark.parametrize("name", [CONFIG, RESULT])
def test_a_folder_in_the_place_of_a_file_is_named(name, call):  # noqa: F811
    path = call() / name
    path.unlink()
    path.mkdir()
    with pytest.raises(SystemExit, match=rf"error: .*{re.escape(name)} is a folder where a file"):
        call()


def test_what_is_in_a_folder_that_is_no_run_is_named(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_text("")
    with pytest.raises(
        FileExistsError, match=r"holds no run \(no config\.gin, but a, b, c, \.\.\.\)"
    ):
        claim(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_named(call, tmp_path):  # noqa: F811
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit, match="error: .*out is not a folder"):
        call()


def test_paths_and_texts_of_any_kind(tmp_path):
    """A way through the parent folder, and a text that is longer than a file's name may be."""
    folder = tmp_path / "a" / ".." / "b c#?%20"
    (tmp_path / "a").mkdir()
    claim(folder, f"PROMPT = '{'x' * 5000}'\n")
    assert (tmp_path / "b c#?%20" / CONFIG).exists()


def test_a_folder_in_use_is_refused_for_every_run_and_released_after_errors(call, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    with (
        run_folder.claim(out, SETTINGS),
        pytest.raises(SystemExit, match=r"error: .*out is in use by process \d+ on host"),
    ):
        call()
    assert not (out / lock.KEY).exists()


def test_a_run_that_has_ended_needs_no_lock(tmp_path):
    """So that its folder may be read-only."""
    claim(tmp_path)
    run_folder.finish(tmp_path, {})
    with run_folder.claim(tmp_path, SETTINGS):
        assert not (tmp_path / lock.KEY).exists()
