"""The compiled CPU passes: taps.cpp and what it includes, built when they are first needed, then cached.

The system's C++ compiler builds them, in seconds. The library has no other entry points than plain C functions, so it
neither includes nor links PyTorch. OpenMP is left unlinked: its symbols are found in the runtime that PyTorch has
loaded, so that both share one pool of threads.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_LOGGER = logging.getLogger("kaconv")
_SOURCE = Path(__file__).with_name("taps.cpp")
_FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp"),
    # Sums may be reordered, and are taken in several lanes at once; NaN and infinity keep their meaning.
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
    *("-funroll-loops", "-fvariable-expansion-in-unroller"),
]
_WIDE = "-mprefer-vector-width=512"
_TIMEOUT = 120  # seconds


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled passes, or None, with one line in the log, where they cannot be built."""
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        _LOGGER.warning("KAConv runs uncompiled on the CPU, which is slower: %s", detail.strip().splitlines()[-1])
        return None


def _built() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise RuntimeError("there is no C++ compiler (c++, g++, clang++, or the environment variable CXX)")
    flags = [*_FLAGS, _WIDE] if torch.backends.cpu.get_cpu_capability() == "AVX512" else _FLAGS
    path = _cache_folder() / f"taps-{_key(compiler, flags)}.so"
    if not _is_whole(path):
        _compile(compiler, flags, path)
    return path


def _is_whole(path: Path) -> bool:
    """Whether a library is there as it was built: a damaged one would end the process when it is loaded or called."""
    try:
        return _digest_path(path).read_text(encoding="ascii") == _digest(path)
    except (OSError, UnicodeDecodeError):
        return False


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may build the same: each has a folder of its own, and the last to end puts its file in place.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled, linked = Path(folder, "taps.o"), Path(folder, "taps.so")
        run = functools.partial(subprocess.run, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
        run([compiler, *flags, "-c", str(_SOURCE), "-o", str(compiled)])
        run([compiler, "-shared", str(compiled), "-o", str(linked)])
        digest = Path(folder, "taps.sha256")
        digest.write_text(_digest(linked), encoding="ascii")
        linked.replace(path)
        digest.replace(_digest_path(path))  # last: until then the library counts as damaged


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kaconv"


def _key(compiler: str, flags: list[str]) -> str:
    """Names the build: another source, compiler or processor (a shared home folder has several) gives another."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=_TIMEOUT)
    sources = [path.read_text() for path in sorted(_SOURCE.parent.glob("*.?pp"))]
    parts = [*sources, version.stdout, " ".join(flags), platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
