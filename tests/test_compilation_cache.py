"""Commands compile once for all runs of a user; the library alone writes nowhere."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib.version
import pytest

from dera_jax import command_line, compilation_cache
from dera_jax.files.cache_folder import cache_folder

ROOT = Path(__file__).resolve().parent.parent


def environment(**settings: str) -> dict[str, str]:
    """This process's without the user's decisions about caches."""
    unset = {*compilation_cache._SETTINGS, "DERA_JAX_CACHE", "XDG_CACHE_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | settings


COMMAND = """
import collections, jax
from dera_jax import command_line
from dera_jax.decoding import sampling
assert jax.config.jax_compilation_cache_dir is None, "importing the library is enough"
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.split("/")[-1]]))
command_line.run(lambda: print(jax.jit(lambda x: sampling.is_end(x, x) @ x)(jax.numpy.arange(3))))
print(*(seen[x] for x in ("compile_requests_use_cache", "cache_hits", "cache_misses")))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    settings = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", COMMAND]
    counts, stored = [], []
    for _ in range(2):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(**settings),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        result, counted = done.stdout.splitlines()
        assert result == "3"
        counts.append([int(x) for x in counted.split()])
        stored.append(sorted(tmp_path.rglob("*-cache")))
    (asked, *first), (asked_again, *second) = counts
    assert asked == asked_again > 0 and first == [0, asked] and second == [asked, 0]
    assert stored[0] == stored[1] and len(stored[0]) == asked


@pytest.fixture
def config(monkeypatch, tmp_path):
    """JAX's settings, where the user has decided nothing and the cache is in `tmp_path`."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(os, "environ", environment(XDG_CACHE_HOME=str(tmp_path / "cache")))
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("value", ["", "/somewhere/else"])
@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_what_the_user_has_set_stays(config, tmp_path, name, value):
    os.environ[name] = value
    compilation_cache.enable()
    assert config.jax_compilation_cache_dir is None and not list(tmp_path.iterdir())


def test_a_folder_that_was_chosen_in_python_stays(config, tmp_path):
    config.update("jax_compilation_cache_dir", "/somewhere/else")
    compilation_cache.enable()
    assert config.jax_compilation_cache_dir == "/somewhere/else" and not list(tmp_path.iterdir())


def test_a_jaxlib_that_would_log_false_errors_keeps_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 10, 1))
    compilation_cache.enable()
    assert config.jax_compilation_cache_dir is None and not list(tmp_path.iterdir())


def test_the_folder_is_the_user_s_alone(config, tmp_path, capfd):
    before = os.umask(0)
    try:
        compilation_cache.enable()
    finally:
        os.umask(before)
    folder = Path(config.jax_compilation_cache_dir)
    assert folder.is_relative_to(tmp_path / "cache/dera_jax/compiled")
    assert folder.stat().st_mode & 0o777 == 0o700 and not list(folder.iterdir())
    assert capfd.readouterr() == ("", "")

    config.update("jax_compilation_cache_dir", None)
    folder.chmod(0o770)  # as if another user might have put a program there
    compilation_cache.enable()
    assert config.jax_compilation_cache_dir is None
    assert "Other users can write to it" in capfd.readouterr().err


def test_a_run_goes_on_without_a_folder_to_write_to(config, tmp_path, capfd):
    (tmp_path / "cache").write_text("no folder")
    ran = []
    command_line.run(lambda: ran.append(config.jax_compilation_cache_dir))
    out, err = capfd.readouterr()
    assert ran == [None] and not out
    assert len(err.splitlines()) == 1 and "Not a directory" in err and str(tmp_path) in err


def test_a_run_goes_on_without_a_home_directory(config, monkeypatch, capfd):
    def none():
        raise RuntimeError("Could not determine home directory.")

    del os.environ["XDG_CACHE_HOME"]
    monkeypatch.setattr(Path, "home", none)
    compilation_cache.enable()
    assert config.jax_compilation_cache_dir is None
    assert len(capfd.readouterr().err.splitlines()) == 1


X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 143
cpu MHz\t\t: 2000.0
flags\t\t: fpu avx2 avx512f

processor\t: 1
vendor_id\t: GenuineIntel
model\t\t: 143
cpu MHz\t\t: 2100.5
flags\t\t: fpu avx2 avx512f
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def test_each_kind_of_cpu_has_its_own_folder(monkeypatch, tmp_path):
    """A program with instructions that a CPU lacks would end the run with SIGILL."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(compilation_cache, "_CPU_INFO", file)

    def digest(text):
        file.write_text(text)
        return compilation_cache._cpu_digest()

    assert digest(X86) == digest(X86.replace("2000.0", "3500.0")) == digest(X86 + X86)
    assert digest(ARM) == digest(ARM.replace("50.00", "48.00"))
    other = [X86.replace(" avx512f", ""), X86.replace("143", "85"), ARM.replace(" sve", "")]
    assert len({digest(text) for text in (X86, ARM, *other)}) == 5
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert digest(X86) != digest(ARM)


def test_where_nothing_is_known_of_the_cpu_each_machine_has_its_own_folder(monkeypatch, tmp_path):
    """As on an architecture whose file has none of the lines."""
    monkeypatch.setattr(compilation_cache, "_CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("hart\t: 0\n")
    digests = set()
    for name in ("a", "b"):
        monkeypatch.setattr(platform, "node", lambda name=name: name)
        digests.add(compilation_cache._cpu_digest())
    assert len(digests) == 2


def test_a_mac_says_what_its_cpu_can_do(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation_cache, "_CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    digests = set()
    for found in ("hw.optional.arm.FEAT_SME: 1\n", "hw.optional.arm.FEAT_SME: 0\n"):
        done = subprocess.CompletedProcess([], 0, stdout=found)
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        digests.add(compilation_cache._cpu_digest())
    assert len(digests) == 2


def test_programs_that_were_not_used_for_long_make_room(config, tmp_path, monkeypatch):
    """Those of other CPUs too, and of versions of JAX that are gone."""
    monkeypatch.setattr(compilation_cache, "_MAX_BYTES", 25)
    programs = cache_folder() / "compiled"
    for number, (folder, used) in enumerate([("a", 30), ("a", 10), ("b", 40), ("b", 20)]):
        (programs / folder).mkdir(parents=True, exist_ok=True)
        file = programs / folder / f"{number}-cache"
        file.write_bytes(bytes(10))
        os.utime(file, (used, 5))  # read then, written before
    compilation_cache.enable()
    assert sorted(x.name for x in programs.glob("*/*-cache")) == ["0-cache", "2-cache"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"DERA_JAX_CACHE": "/named", "XDG_CACHE_HOME": "/xdg"}, "/named"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/dera_jax"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/dera_jax"),  # invalid, says the standard
        ({}, "/home/me/.cache/dera_jax"),
    ],
)
def test_the_cache_folder_is_the_user_s(monkeypatch, settings, expected):
    monkeypatch.setattr(os, "environ", environment(HOME="/home/me", **settings))
    assert cache_folder() == Path(expected)
