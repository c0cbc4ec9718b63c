"""Switches JAX's persistent compilation cache on: a run reads what an earlier run compiled.

Commands call this; importing the library does not. A compiled program is machine code that runs with
the user's rights, hence two rules: each kind of CPU has its own folder, since a home directory may be
shared by machines with different instruction sets, and only the user may write to the folder.
"""

import errno
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from dera_jax.cache_folder import cache_folder

_SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
_MAX_BYTES = 2**30
# Earlier ones log pages of false errors for every program read on a CPU with AVX-512 (jax issue 38445).
_FIRST_JAXLIB = (0, 10, 2)
_CPU_INFO = Path("/proc/cpuinfo")
# Lines of that file that tell which instructions there are: of x86-64, then of ARM.
_CPU_FIELDS = {"vendor_id", "cpu family", "model", "model name", "flags"}
_CPU_FIELDS |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}


def switch_on() -> None:
    """Makes JAX keep its compiled programs in a folder of the user's cache.

    Does nothing if the user has set JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE, or with
    a jaxlib before 0.10.2. If the folder cannot be used, prints one line to stderr, and every run compiles.
    """
    import jax  # late, so that importing this module stays cheap
    import jaxlib.version

    if jaxlib.version.__version_info__ < _FIRST_JAXLIB:
        return
    decided = any(name in os.environ for name in _SETTINGS)
    if decided or jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        programs = cache_folder() / "compiled"
        folder = programs / _cpu_digest()
        _make_private(folder)
        _remove_oldest(programs)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home directory
        print(f"compiled programs are not kept for later runs: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _make_private(folder: Path) -> None:
    """Makes a folder that its user alone can write to; raises OSError if there is none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(errno.EPERM, "Other users can write to it", str(folder))
    with tempfile.TemporaryFile(dir=folder):
        pass


def _remove_oldest(programs: Path) -> None:
    """Removes the programs that were used longest ago until those of all CPUs fit into 1 GiB.

    JAX's own limit (jax_compilation_cache_max_size) needs locks, which network file systems may lack,
    and after a run killed while writing it stores nothing more.
    """
    used = {}
    for file in programs.glob("*/*-cache"):
        try:
            used[file] = file.stat()
        except FileNotFoundError:  # removed by another process
            pass
    total = 0
    for file in sorted(used, key=lambda x: -max(used[x].st_atime, used[x].st_mtime)):
        total += used[file].st_size
        if total > _MAX_BYTES:
            file.unlink(missing_ok=True)


def _cpu_digest() -> str:
    """A hash of the CPU's model and instruction sets; of the machine's name where they are unknown."""
    known = _cpu() or {platform.node(), platform.processor()}
    text = "\n".join([platform.system(), platform.machine(), *sorted(known)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _cpu() -> set[str]:
    """What the system says of its CPUs: on Linux and macOS; elsewhere nothing."""
    if _CPU_INFO.exists():
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
        return {line for line in lines if line.partition(":")[0].strip() in _CPU_FIELDS}
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return set(found.stdout.splitlines())
    return set()
