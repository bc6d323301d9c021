"""Kernels of a CPU: built by the machine's C++ compiler, kept on disk, loaded with ctypes, run on torch's own threads.

A kernel is built once for a source, compiler, flags and kind of processor, and kept in a folder of this user's that
nobody else may write: $HF_OPTIM_CACHE, else ~/.cache/hf_optim (or $XDG_CACHE_HOME), else one below the temporary
folder; one from which nothing may be loaded (noexec) is left for the next. A file's name says what it holds: the part
of one that a full disk or a machine that went down has left would end the process that loads it. HF_OPTIM_KERNELS=0
switches kernels off.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from hf_optim.core import caches
from hf_optim.core.notes import waiting

_BASE = ("-std=c++17", "-O3", "-shared", "-fPIC", "-w", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
#: tried one after the other: not every compiler knows the machine it runs on, and none may use -ffast-math, which
#: would change how the whole process treats denormal numbers
_FLAGS: tuple[tuple[str, ...], ...] = ((*_BASE, "-march=native"), (*_BASE, "-mcpu=native"), _BASE)
if platform.machine().lower() in ("x86_64", "amd64"):
    # else gcc takes the roots of 16 floats as twice 8, and puts them together through memory: AdamW took a third longer
    _FLAGS = ((*_BASE, "-march=native", "-mprefer-vector-width=512"), *_FLAGS)
#: seconds after which a compiler that says nothing, or makes nothing, is none; ours take some on a busy machine
_TO_ANSWER, _TO_BUILD = 60, 600


class Unbuildable(Exception):
    """There is no kernel; the message says why."""


class Arguments(ctypes.Structure):
    """What a kernel is called with: addresses of tables (see `hf_optim.engine.passes`), and how long they are."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("table", "which", "where", "sizes", "row", "numbers", "sums", "partial",
                                               "keys", "origin")),
        *((name, ctypes.c_int64) for name in ("tensors", "chunks", "chunk", "next")),
    ]  # fmt: skip


# --- the compiler ----------------------------------------------------------------------------------------------------


def switched_off() -> str | None:
    """Why there shall be no kernels, if the environment says so."""
    if os.environ.get("HF_OPTIM_KERNELS", "1").lower() in ("0", "false", "no", "off"):
        return "HF_OPTIM_KERNELS=0"
    return None


def triton_everywhere() -> bool:
    """Whether the environment asks for Triton's kernels on a CPU, too: in its interpreter, for tests."""
    return os.environ.get("HF_OPTIM_KERNELS", "").lower() == "triton"


@cache
def compiler() -> tuple[str, str]:
    """The C++ compiler and its version.

    Raises:
        Unbuildable: there is none.
    """
    if sys.platform == "win32":
        raise Unbuildable("kernels for a CPU are not built on Windows")
    if sys.platform == "darwin" and subprocess.run(["xcode-select", "-p"], capture_output=True).returncode:
        raise Unbuildable("there is no C++ compiler (xcode-select --install brings one)")
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        if path is not None and (version := _version(os.path.abspath(path))):
            return os.path.abspath(path), version
    raise Unbuildable("there is no C++ compiler (install g++ or clang++, or name one in CXX)")


def _version(path: str) -> str:
    """What a compiler says of itself; empty for what is none."""
    try:
        said = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TO_ANSWER, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.decode(errors="replace").strip()


@cache
def _processor() -> str:
    """What the processor can do; its model's name would hide what a virtual machine masks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


# --- the folder ------------------------------------------------------------------------------------------------------


def _folders() -> Iterator[Path]:
    return caches.folders("kernels")


def _trusted(file: Path) -> bool:
    """A file that we wrote."""
    try:
        status = file.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022 and not file.is_symlink()


def _made_before(folder: Path, name: str) -> Path | None:
    """The kernel of a name that was built before, whole."""
    return next((f for f in folder.glob(f"{name}-*.so") if _trusted(f) and f.name == _named(name, f)), None)


def _sweep(folder: Path) -> None:
    """Takes away what killed compilers have left: files that no compiler of ours can still be writing to."""
    for file in folder.glob("*.so"):
        with suppress(OSError):
            if len(file.stem) == 40 and "-" not in file.stem and time.time() - file.lstat().st_mtime > 2 * _TO_BUILD:
                file.unlink()


def _named(name: str, file: Path) -> str:
    """A kernel's file name, which says what is in it."""
    try:
        return f"{name}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.so"
    except OSError:  # a folder
        return ""


# --- building --------------------------------------------------------------------------------------------------------


class Kernel:
    """A built and loaded kernel. `run` and `gather` are the C functions of `hf_optim.engine.emit_cpp`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.run = library.run
        self.run.argtypes, self.run.restype = [ctypes.c_void_p], None
        self.gather = getattr(library, "gather", None)
        if self.gather is not None:
            self.gather.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
            self.gather.restype = None

    def launch(self, arguments: Arguments, threads: int) -> None:
        """Run over all chunks; returns when they are done."""
        arguments.next = 0
        team = _team() if threads > 1 and arguments.chunks > 1 else None
        if team is None:
            self.run(ctypes.addressof(arguments))
        else:
            team(self.run, ctypes.addressof(arguments), min(threads, arguments.chunks), 0)


class Building:
    """A kernel that a compiler is working on, or that is there already."""

    def __init__(self, source: str) -> None:
        self._source, self._lock = source, threading.Lock()
        self._kernel: Kernel | None = None
        self._why: str | None = None
        self._places = list(_folders())
        self._flags = _working_flags()
        self._process: subprocess.Popen[bytes] | None = None
        self._attempt(self._start)

    def kernel(self) -> Kernel:
        """The kernel, as soon as it is built.

        Raises:
            Unbuildable: it cannot be.
        """
        if self._kernel is None and self._why is None:  # every launch asks
            with self._lock, waiting("building a kernel for this rule, once: it is kept on disk for the next run"):
                while self._kernel is None and self._why is None:
                    self._attempt(self._go_on)
        if self._kernel is None:
            raise Unbuildable(str(self._why))
        return self._kernel

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:  # of a disk, or of a compiler that is gone
            self._why = f"no kernel can be built: {error.strerror or error}"
        except subprocess.TimeoutExpired as error:
            self._why = f"the C++ compiler has not ended after {error.timeout:g} seconds"

    def _start(self) -> None:
        """Find a kernel of the past, or begin to build one."""
        path, version = compiler()
        key = "\0".join((self._source, version, *self._flags[0], _processor(), platform.machine()))
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        refused = None
        while self._places:
            refused = caches.unsafe(self._places[0])
            if refused is None:
                break
            self._places.pop(0)
        else:
            self._why = (
                refused or "no folder for kernels allows what is made there to be loaded: set HF_OPTIM_CACHE or CXX"
            )
            return
        self._name, self._file = name, _made_before(self._places[0], name)
        if self._file is not None:
            return
        _sweep(self._places[0])
        # Files rather than pipes: a compiler that does not read, or leaves a process behind, is not waited for.
        self._said = tempfile.TemporaryFile(dir=self._places[0])
        handle, self._new = tempfile.mkstemp(suffix=".so", prefix=name, dir=self._places[0])
        os.close(handle)
        command = [path, *self._flags[0], "-x", "c++", "-", "-o", self._new]
        with tempfile.TemporaryFile(dir=self._places[0]) as source:
            source.write(self._source.encode())
            source.seek(0)
            self._process = subprocess.Popen(
                command,
                cwd=self._places[0],  # a linker takes libraries from the current folder, which may be a stranger's
                stdin=source,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
            )

    def _wait(self, process: subprocess.Popen[bytes]) -> str | None:
        """What a compiler says that fails; None where it made something."""
        with self._said:
            try:
                if process.wait(_TO_BUILD) == 0:
                    return None
            except subprocess.TimeoutExpired:
                process.kill()
                Path(self._new).unlink(missing_ok=True)
                raise
            Path(self._new).unlink(missing_ok=True)
            self._said.seek(0)
            return self._said.read(1 << 20).decode(errors="replace")

    def _go_on(self) -> None:
        """Wait for the compiler and load what it made; where that fails, try the next flags or folder."""
        if self._process is not None:
            said = self._wait(self._process)
            self._process = None
            if said is not None:
                self._flags = self._flags[1:]
                if self._flags:
                    self._start()
                else:
                    lines = said.strip().splitlines() or ["?"]
                    self._why = f"the C++ compiler fails: {next((s for s in lines if 'error' in s), lines[0])}"
                return
            Path(self._new).chmod(0o700)
            self._file = self._places[0] / _named(self._name, Path(self._new))
            os.replace(self._new, self._file)
        assert self._file is not None
        try:
            self._kernel = Kernel(ctypes.CDLL(str(self._file)))
            _found_flags(self._flags)
        except (OSError, AttributeError):  # a folder of which nothing may be run, or a file that is no kernel
            self._file.unlink(missing_ok=True)
            self._places.pop(0)
            self._start()


_flags: list[tuple[tuple[str, ...], ...]] = [_FLAGS]


def _working_flags() -> tuple[tuple[str, ...], ...]:
    return _flags[0]


def _found_flags(flags: tuple[tuple[str, ...], ...]) -> None:
    _flags[0] = flags


@cache
def build(source: str) -> Building:
    """Begin to build a kernel, or find the one of the past. One for each source and process.

    Raises:
        Unbuildable: there is no compiler.
    """
    return Building(source)


# --- threads ---------------------------------------------------------------------------------------------------------


@cache
def _team():  # type: ignore[no-untyped-def]
    """GOMP_parallel(function, data, threads, flags) of the OpenMP runtime that torch runs on; None if there is none: a
    pool of our own would double the threads."""
    path = _runtime()
    try:
        team = ctypes.CDLL(path).GOMP_parallel if path else None
    except (OSError, AttributeError):
        return None
    if team is not None:
        team.argtypes, team.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return team


def _runtime() -> str | None:
    """The file of the OpenMP runtime that this process has loaded, torch's own before others."""
    names = ("libgomp", "libiomp5", "libomp")
    home = Path(torch.__file__).parent
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        loaded = {line.split(maxsplit=5)[5] for line in maps if line.count("/")}
    except OSError:
        loaded = {str(f) for f in (home / "lib").glob("lib*omp*")}
    libraries = sorted(f for f in loaded if Path(f).name.startswith(names) and Path(f).exists())
    return next((f for f in libraries if home.parent in Path(f).parents), libraries[0] if libraries else None)
