"""Code that a user names: `package.module:Name` or `file.py:Name`. Nothing else is ever imported from a name.

A name on the command line, in a file that the user asks to run, or in the user's own program is the user's. A name that
stands in a record, a plan, a spec.json or a checkpoint may be anybody's: what works on those does so within `refused`,
and says which code it would have run.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import os
import shlex
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from hf_optim.core import caches, validate
from hf_optim.core.catalogue import code_of
from hf_optim.errors import UnknownName, UserError

#: what looks into the current folder while it is imported: a library of torch's (cuSPARSELt, whose search path has an
#: empty part) loads a libcuda.so.1 that lies there, matplotlib heeds a matplotlibrc, and a part of transformers follows
#: `src`, which may be a link to itself
_LOOKING = ("torch", "matplotlib", "transformers.utils.auto_docstring")
#: what transformers imports wherever it is installed, and which then heeds files of the current folder: one of its
#: settings is a file to write its log over, and where MLflow is fed, it asks the folder's repository, too
UNASKED = ("comet_ml",)
_asked: set[str] = set()
_ran: dict[str, str] = {}  # of the user's files, by their modules' names: SHA-256 of the text that was run
_refused: ContextVar[str] = ContextVar("_refused", default="")
_way: ContextVar[str] = ContextVar("_way", default="")
_unread: ContextVar[bool] = ContextVar("_unread", default=False)


class Unimportable(UserError):
    """Code of the user's that fails while it is imported: what follows from a name says nothing about it."""


class Untrusted(UserError):
    """A name of code that stands where a stranger may have written it."""


@contextmanager
def elsewhere() -> Iterator[None]:
    """Within it Python's own folder is the current one."""
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))  # of a folder that may not be listed, too
    try:
        os.chdir(sys.prefix)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


@functools.cache
def compiled_folder() -> str:
    """Where torch.compile keeps what it makes, and runs what it finds. By itself it takes a folder of the user's name
    in the temporary one, and whoever of the machine's users makes that first decides what is run.
    """
    return str(caches.safe("inductor")[0] or Path(tempfile.gettempdir()) / f"hf_optim-{uuid.uuid4().hex}")


def _with_safe_path(options: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """What tells a new Python its options, with -P among them."""
    return lambda: ["-P", *options()]


#: module -> what is put in the place of which function of it. A linker takes a libgcc_s.so.1 of the current folder for
#: its own; inductor's workers import torch, and what tries the processor's instructions ctypes; its compiled headers
#: heed no environment; processes that are not forked (Python's own on macOS and from 3.14 on, and what tracks their
#: locks) would look for modules in the current folder
_CHANGED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "triton.runtime.build": ("_build", elsewhere()),
    "torch._inductor.compile_worker.subproc_pool": ("SubprocPool.__init__", elsewhere()),
    "torch._inductor.cpu_vec_isa": ("VecISA.check_build", elsewhere()),
    "torch._inductor.runtime.cache_dir_utils": ("default_cache_dir", lambda _: compiled_folder),
    "multiprocessing.util": ("_args_from_interpreter_flags", _with_safe_path),
    "multiprocess.util": ("_args_from_interpreter_flags", _with_safe_path),
}


def _change(module: ModuleType) -> None:
    """Puts in its place what `_CHANGED` says of a module."""
    (*owners, name), change = _CHANGED[module.__name__][0].split("."), _CHANGED[module.__name__][1]
    owner = functools.reduce(getattr, owners, module)
    setattr(owner, name, change(getattr(owner, name)))


class _Elsewhere:
    """Imports what is in `_LOOKING` while Python's own folder is the current one, what is in `UNASKED` where it was
    asked for, and changes what is in `_CHANGED`.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The usual spec with a loader that does so; None for every other module."""
        if fullname not in (*_LOOKING, *UNASKED) and fullname not in _CHANGED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def from_elsewhere(module: ModuleType) -> None:
            if fullname in UNASKED:
                if fullname not in _asked:
                    raise ImportError(f"{fullname} is imported for runs that ask for it alone: --report-to {fullname}")
                return execute(module)
            if fullname == "torch":
                os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled_folder())
            if fullname == "matplotlib":
                os.environ["MPLBACKEND"] = "agg"  # a command opens no window, whatever it is told
            if fullname in _LOOKING:
                with elsewhere():
                    return execute(module)
            execute(module)
            _change(module)

        spec.loader.exec_module = from_elsewhere  # type: ignore[method-assign]
        return spec


def ignore_current_folder() -> None:
    """For programs of ours, before they import much: the current folder may be a stranger's, and is not searched."""
    # an editable installation puts a name there that is no folder, and becomes one where the current one has it
    sys.path[:] = [entry for entry in sys.path if not entry or os.path.isabs(entry)]
    if not any(isinstance(finder, _Elsewhere) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Elsewhere())
        for name in _CHANGED.keys() & sys.modules.keys():
            _change(sys.modules[name])


def ask_for(names: Iterable[str]) -> None:
    """From now on these may be imported, also by others: said before transformers is, which looks once."""
    _asked.update(names)


#: the way to have code run that a command without --trust only looks at
NO_DRY_RUN = "without --dry-run it is run"


@contextmanager
def refused(
    why: str, trust: bool = False, read: bool = False, way: str = "look at it, and --trust runs it"
) -> Iterator[None]:
    """Within it `import_path` imports nothing and raises `Untrusted`, which says `why`, and the `way` to have it run;
    with `trust` it imports. With `read` the files that paths name may be read all the same, as text."""
    tokens = _refused.set("" if trust else why), _unread.set(not (trust or read)), _way.set(way)
    try:
        yield
    finally:
        _refused.reset(tokens[0])
        _unread.reset(tokens[1])
        _way.reset(tokens[2])


def readable() -> bool:
    """Whether the file that an import path names may be read, as text."""
    return not _unread.get()


def reason() -> str:
    """Why nothing that only a file names is used here; empty where the user is the one who asks."""
    return _refused.get()


def is_path(name: object) -> bool:
    """Whether a name means code rather than something that comes with the package."""
    return isinstance(name, str) and (":" in name or ".py" in name)


def paths(value: Any) -> list[str]:
    """The import paths among the names in plain data: of tasks, optimizers, their bases and their transforms, also
    where these are called by dotted names, as a search's are.
    """
    entries: list[str] = []
    for key, entry in value.items() if isinstance(value, Mapping) else ():
        if str(key).rpartition(".")[2] in ("name", "task", "base", "grad_transform") and is_path(entry):
            entries.append(entry)
        entries += paths(entry)
    for entry in value if isinstance(value, (list, tuple)) else ():
        entries += paths(entry)
    return list(dict.fromkeys(entries))


def import_path(path: str) -> Any:
    """The object behind an import path.

    Raises:
        UserError: no such file, module or name; `Unimportable` where the code fails while it is imported.
        Untrusted: within `refused`.
    """
    where, _, attribute = path.rpartition(":")
    if not (where and attribute):
        raise UnknownName(f"{path} names nothing: an import path is package.module:NAME or file.py:NAME")
    if why := _refused.get():
        if readable() and where.endswith(".py"):
            _check_written(path, _file(where), attribute)
        raise Untrusted(f"{path} is code, and {why}: {_way.get()}")
    try:
        module = _from_file(where) if where.endswith(".py") else importlib.import_module(where)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the latter is a program's way to end, which this is no part of
        raise Unimportable(
            f"{path}: cannot import {where} ({type(error).__name__}: {error}{_beside(where, error)})"
        ) from error
    if not hasattr(module, attribute):
        raise _nameless(path, dir(module))
    return getattr(module, attribute)


def _nameless(path: str, there: Iterable[str]) -> UnknownName:
    where, _, attribute = path.rpartition(":")
    return UnknownName(f"{path}: {where} has no {attribute}{validate.closest(attribute, there)}")


def _check_written(path: str, file: Path, attribute: str) -> None:
    """Raise UnknownName where a file's text gives the name to nothing, and Unimportable where it is no Python, which is
    seen without running it.
    """
    try:
        nodes = list(ast.walk(ast.parse(code_of(file))))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise Unimportable(f"{path}: {file.name} is no Python ({getattr(error, 'msg', error)}{line})") from None
    except (OSError, RecursionError, MemoryError):
        return  # whoever runs it is told why
    names = {n.name for n in nodes if isinstance(n, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))}
    names |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names |= {n.asname or n.name.partition(".")[0] for n in nodes if isinstance(n, ast.alias)}
    computed = {"*", "__getattr__"} & names or {"globals", "exec", "vars", "setattr"} & _read_names(nodes)
    if attribute not in names and not computed:
        raise _nameless(path, names)


def _read_names(nodes: Iterable[ast.AST]) -> set[str]:
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _beside(where: str, error: BaseException) -> str:
    """What lets a file import its neighbour, where that is what it lacked: folders are not searched by themselves."""
    folder, lacking = Path(os.path.realpath(Path(where).expanduser())).parent, getattr(error, "name", None) or ""
    there = isinstance(error, ModuleNotFoundError) and where.endswith(".py") and (folder / f"{lacking}.py").is_file()
    return f"; {lacking}.py beside it is found with PYTHONPATH={shlex.quote(str(folder))}" if there else ""


def _file(name: str) -> Path:
    file = Path(os.path.realpath(Path(name).expanduser()))
    if not file.is_file():
        raise UnknownName(f"there is no file {name}")
    return file


class _AsWritten(SourceFileLoader):
    """Runs the text of a file. What lies compiled beside it may be of another one, which nobody has looked at."""

    def get_code(self, fullname: str) -> CodeType:
        """Of the text, always."""
        file = self.get_filename(fullname)
        text = self.get_data(file)
        _ran[fullname] = hashlib.sha256(text).hexdigest()
        code: CodeType = self.source_to_code(text, file)
        return code


def digests(value: Any) -> dict[str, str]:
    """SHA-256 of the file of each `file.py:NAME` in plain data: of the text that was run here, else of what stands
    there.
    """
    told = {}
    for path in paths(value):
        where = path.rpartition(":")[0]
        with suppress(OSError, ValueError):
            if where.endswith(".py"):
                file = _file(where)
                told[path] = _ran.get(_key(file)) or hashlib.sha256(code_of(file)).hexdigest()
    return told


def _key(file: Path) -> str:
    """What the module of a file is called here."""
    return f"hf_optim_user_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"


def _from_file(name: str) -> ModuleType:
    file = _file(name)
    key = _key(file)
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, file, loader=_AsWritten(key, str(file)))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # before it runs, so that its classes can be pickled
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[key]
            if isinstance(error, UserError):  # of what the file says, which the message may not name
                raise Unimportable(f"{name}: {error}") from error
            raise
    return sys.modules[key]


def stands(value: Any) -> bool:
    """Whether it can be where a name is: a name, an optimizer class, or what can be called for one."""
    return isinstance(value, str) or (callable(value) and (not isinstance(value, type) or hasattr(value, "step")))


if __name__ == "__main__":  # MODULE ARGUMENTS, as after `python -m`
    import runpy

    ignore_current_folder()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
