"""Enables JAX's persistent compilation cache, so that runs load programs of earlier runs.

Commands call `enable`; importing the library does not. A compiled program is machine code that
runs with the user's rights. Therefore only the user may write to the folder, and each kind of CPU
has its own, because machines with different instruction sets may share a home directory.
"""

import errno
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from dera_jax.files.cache_folder import cache_folder

_SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
_MAX_BYTES = 2**30
# Earlier versions log false errors for each program loaded on a CPU with AVX-512 (jax issue 38445).
_FIRST_JAXLIB = (0, 10, 2)
_CPU_INFO = Path("/proc/cpuinfo")
# Fields of that file that identify the instruction set: for x86-64, then for ARM.
_CPU_FIELDS = {"vendor_id", "cpu family", "model", "model name", "flags"}
_CPU_FIELDS |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}


def enable() -> None:
    """Makes JAX store its compiled programs in a subfolder of this package's cache folder.

    It does nothing if the user has configured JAX's cache, by JAX_COMPILATION_CACHE_DIR,
    JAX_ENABLE_COMPILATION_CACHE or `jax.config`, or with a jaxlib before 0.10.2. If the folder
    cannot be used, it prints one line to stderr, and every run compiles its programs again.
    """
    import jax  # imported here, so that importing this module stays fast
    import jaxlib.version

    if jaxlib.version.__version_info__ < _FIRST_JAXLIB:
        return
    configured = any(name in os.environ for name in _SETTINGS)
    if configured or jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        programs = cache_folder() / "compiled"
        folder = programs / _cpu_digest()
        _make_private(folder)
        _remove_oldest(programs)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home directory
        print(
            f"compiled programs are not stored for later runs: {error}; set DERA_JAX_CACHE to a "
            "folder that only you can write to",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _make_private(folder: Path) -> None:
    """Creates a folder that only the user can write to; raises OSError if that is impossible."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(errno.EPERM, "Other users can write to it", str(folder))
    with tempfile.TemporaryFile(dir=folder):
        pass


def _remove_oldest(programs: Path) -> None:
    """Removes the least recently used programs, until those of all CPUs fit into 1 GiB.

    JAX's own limit, jax_compilation_cache_max_size, is not used: it needs locks, which network file
    systems may lack, and once a run was killed while writing, nothing more is stored.
    """
    stats = {}
    for file in programs.glob("*/*-cache"):
        try:
            stats[file] = file.stat()
        except FileNotFoundError:  # removed by another process
            pass
    total = 0
    for file in sorted(stats, key=lambda x: -max(stats[x].st_atime, stats[x].st_mtime)):
        total += stats[file].st_size
        if total > _MAX_BYTES:
            file.unlink(missing_ok=True)


def _cpu_digest() -> str:
    """Returns a hash of the CPU's model and instruction sets, or of the host name if unknown."""
    lines = _cpu_description() or {platform.node(), platform.processor()}
    description = "\n".join([platform.system(), platform.machine(), *sorted(lines)])
    return hashlib.sha256(description.encode()).hexdigest()[:12]


def _cpu_description() -> set[str]:
    """Returns the system's description of its CPUs on Linux and macOS, elsewhere an empty set."""
    if _CPU_INFO.exists():
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
        return {line for line in lines if line.partition(":")[0].strip() in _CPU_FIELDS}
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return set(result.stdout.splitlines())
    return set()
