"""Files of `torch.save`, looked through before torch reads them: plain values and dense tensors that the file holds.

`torch.load(weights_only=True)` runs nothing of a stranger's, and yet does what they ask for: it unpacks tensors that
were packed a thousand times smaller, makes bytearrays of any length, hashes tuples within tuples for ever, and builds
NumPy's types of numbers that do not go together, which ends the process.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hf_optim.errors import one_line

#: bytes of the values beside the tensors' numbers, and numbers of a tensor beyond those that it is a view of
LARGEST_VALUES, SPREAD = 256 << 20, 1 << 26
_ONLY, _NOT_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_MAGIC = 0x1950A86A20F9469CFC6C
_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
          "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1}  # fmt: skip
_NUMPY = {"b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"}
#: steps of a pickle that torch does not write
_UNWRITTEN = (pickle.DICT, pickle.INST, pickle.OBJ, pickle.FROZENSET, pickle.ADDITEMS, pickle.NEWOBJ_EX,
              pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)  # fmt: skip
#: what an archive says of itself
_SAID = {"version": re.compile(rb"[1-9][0-9]?\n"), "byteorder": re.compile(b"little|big")}
_SCALARS = (str, int, float, bytes, type(None))


class Suspect(ValueError):
    """The file is damaged, or holds what no checkpoint does."""


@contextmanager
def only_weights() -> Iterator[None]:
    """Within it `torch.load` loads plain data alone, whatever a library asks it for: torch's own switch."""
    before = {name: os.environ.pop(name, None) for name in (_ONLY, _NOT_ONLY)}
    os.environ[_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[_ONLY]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check(file: Path) -> None:
    """Raise `Suspect`, which names the file and says why, unless torch may read it."""
    try:
        with file.open("rb") as stored:
            check_open(stored)
    except Suspect as error:
        raise Suspect(f"{file.name}: {error}") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise Suspect(f"{file.name} is damaged or cut short: {one_line(error)}") from None
    except Exception as error:  # a pickle may fail in any way
        raise Suspect(f"{file.name} is no file of torch.save, or damaged: {one_line(error)}") from None


def check_open(stored: IO[bytes]) -> None:
    """The same of an open file, or a part of one: raises whatever a pickle may."""
    size = stored.seek(0, io.SEEK_END)
    stored.seek(0)
    packed = stored.read(4) == b"PK\x03\x04"  # by which torch knows it
    stored.seek(0)
    if packed:
        _check_archive(stored, size)
    else:
        _check_sequence(stored, size)


def _check_archive(stored: IO[bytes], size: int) -> None:
    with zipfile.ZipFile(stored) as archive:
        entries = archive.infolist()
        if archive.comment or archive.start_dir != _directory(stored):
            raise Suspect("its table of contents lies elsewhere")  # where another reader would find another one
        names = [entry.filename for entry in entries]
        # from Python 3.13 on one takes the other, which torch's reader does not know
        if any(entry.filename != entry.orig_filename for entry in entries):
            raise Suspect("it has parts of two names")
        # torch finds them whatever their case is
        if len({name.lower() for name in names}) < len(names) or any(entry.compress_type for entry in entries):
            raise Suspect("it is packed, or has parts of the same name")
        sizes = {name.partition("/")[2]: entry.file_size for name, entry in zip(names, entries, strict=True)}
        values = [name for name in names if name.partition("/")[2] == "data.pkl"]
        if "constants.pkl" in sizes:
            raise Suspect("it is a program (TorchScript)")
        if len(values) != 1 or len({name.partition("/")[0] for name in names}) > 1:
            raise Suspect("it holds no values of torch.save")
        if sum(sizes.values()) > size or sizes["data.pkl"] > LARGEST_VALUES:
            raise Suspect("it says to hold more than it has")
        for name in _SAID.keys() & sizes.keys():
            said = archive.read(values[0].replace("data.pkl", name)) if sizes[name] < 99 else b""
            if not _SAID[name].fullmatch(said):
                raise Suspect(f"its {name} is none that torch writes")
        _Reader(io.BytesIO(archive.read(values[0])), lambda key: sizes.get(f"data/{key}", -1), size).load()


def _directory(stored: IO[bytes]) -> int:
    """Where an archive says that its table of contents begins."""
    end = stored.seek(-22, io.SEEK_END)
    (start,) = struct.unpack("<16xL2x", stored.read(22))
    if start != 0xFFFFFFFF:
        return int(start)
    stored.seek(end - 20)
    (place,) = struct.unpack("<8xQ4x", stored.read(20))
    if place != end - 76:
        return -1
    stored.seek(place)
    return int(struct.unpack("<48xQ", stored.read(56))[0])


def _check_sequence(stored: IO[bytes], size: int) -> None:
    """The form before torch 1.6: a number, a version, the machine, the values, names of tensors, their numbers."""
    if stored.read(1) != b"\x80":
        raise Suspect("it is no file of torch.save, or cut short")
    stored.seek(0)
    for number in range(5):
        value = _Reader(stored, lambda _: size, size).load()
        if number == 0 and value != _MAGIC:
            raise Suspect("it holds no values of torch.save")


class _Named:
    """Stands for what is only named: a dtype, a layout, a class."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Storage:
    """Stands for the numbers of a tensor."""

    def __init__(self, size: int) -> None:
        self.size = size


class _Tensor:
    """Stands for a tensor."""

    def __setstate__(self, state: Any) -> None:
        raise Suspect("it changes a tensor")


class _Dtype:
    """Stands for `numpy.dtype`: of plain numbers, which nothing said afterwards changes."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        name = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        if not isinstance(name, str) or name not in _NUMPY:
            raise Suspect("it holds an array that is not of plain numbers")
        self.size = int(name[1:])

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or state[2:] != (None, None, None, -1, -1, 0):
            raise Suspect("it changes what an array's numbers are")


class _Array:
    """Stands for a NumPy array that is still empty; `__setstate__` fills it."""

    def __init__(self, kind: Any = None, shape: Any = None, *_: Any) -> None:
        if not isinstance(kind, _Named) or shape != (0,):
            raise Suspect("it holds an array that is not of plain numbers")

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or not all(type(n) is int for n in shape):
            raise Suspect("it holds an array that is not of plain numbers")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.size != len(raw):
            raise Suspect("it holds an array whose shape is not that of its numbers")


def _dense(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> _Tensor:
    """A tensor as torch makes it: a view of what it has stored."""
    whole = [offset, *size, *stride]
    if (
        not isinstance(storage, _Storage)
        or len(size) != len(stride)
        or not all(type(n) is int and n >= 0 for n in whole)
    ):
        raise Suspect("it holds a tensor that is none")
    if math.prod(size) and offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= storage.size:
        raise Suspect("it holds a tensor of more numbers than are there")
    if math.prod(size) > storage.size + SPREAD:
        raise Suspect("it holds a tensor of few numbers that are very many")
    return _Tensor()


def _tensor(value: Any = None, *_: Any) -> _Tensor:
    """A tensor made of another one: a parameter, a tensor's subclass."""
    if not isinstance(value, _Tensor):
        raise Suspect("it holds a tensor that is none")
    return value


def _parameter(value: Any, _: Any = None, hooks: Any = None, state: Any = None) -> _Tensor:
    _check_attributes(state, hooks)
    return _tensor(value)


def _subclassed(function: Any, kind: Any, arguments: Any, state: Any = None) -> _Tensor:
    if kind is not _Trusted:
        _check_attributes(state)
    return _tensor(function(*arguments) if function in (_dense, _tensor, _parameter) else None)


def _check_attributes(state: Any, hooks: Any = None) -> None:
    """Raise for what would stand in the place of a tensor's own methods, or be called as a hook of it."""
    import torch

    for part in state if isinstance(state, tuple) else (state,):
        if hooks or any(hasattr(torch.Tensor, str(name)) for name in part or ()):
            raise Suspect("it changes a tensor")


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise Suspect("it holds bytes in an unknown way")
    return text.encode("latin1")


def _buffer(content: Any = b"", *_: Any) -> bytes:
    if not isinstance(content, (bytes, str)):
        raise Suspect("it asks for bytes that it does not hold")
    return content if isinstance(content, bytes) else content.encode()


def _members(entries: Iterable[Any] = ()) -> list[Any]:
    return [_key(entry) for entry in entries]


def mapping(entries: Any = ()) -> dict[Any, Any]:
    pairs = entries.items() if isinstance(entries, dict) else entries
    return {_key(key): value for key, value in pairs}


def _size(entries: Any = ()) -> tuple[Any, ...]:
    return tuple(entries)


def _complex(*parts: Any) -> complex:
    return complex(*(part for part in parts if isinstance(part, (int, float))))


def _key(value: Any) -> Any:
    """What names an entry; others would be looked through for ever to be found."""
    if not isinstance(value, _SCALARS):
        raise Suspect("it holds a mapping whose keys are neither texts nor numbers")
    return value


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _dense,
    ("torch._utils", "_rebuild_tensor_v2"): _dense,
    ("torch._utils", "_rebuild_tensor_v3"): _dense,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclassed,
    ("torch", "Size"): _size,
    ("torch", "device"): lambda *_: _Named("device"),
    ("torch.serialization", "_get_layout"): lambda *_: _Named("layout"),
    ("collections", "OrderedDict"): mapping,
    ("collections", "Counter"): mapping,
    ("collections", "defaultdict"): lambda *_: {},
    ("_codecs", "encode"): _bytes,
    ("builtins", "bytearray"): _buffer,
    ("builtins", "set"): _members,
    ("builtins", "complex"): _complex,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class Watched(pickle._Unpickler):  # Python's own, in which a step can be refused
    """Reads a pickle step by step; a subclass says what it names, and may say which keys it takes and what is built."""

    dispatch = dict(pickle._Unpickler.dispatch)
    refusal: type[Exception] = Suspect

    def check_key(self, key: Any) -> None:
        """Raise for what may be no mapping's key."""
        _key(key)

    def build(self) -> None:
        """What BUILD does."""
        self.load_build()  # type: ignore[attr-defined]

    def _build(self) -> None:
        self.build()

    def _setitem(self) -> None:
        self.check_key(self.stack[-2])  # type: ignore[attr-defined]
        self.load_setitem()  # type: ignore[attr-defined]

    def _setitems(self) -> None:
        for key in self.stack[::2]:  # type: ignore[attr-defined]
            self.check_key(key)
        self.load_setitems()  # type: ignore[attr-defined]

    def _refuse(self) -> None:
        raise self.refusal("it holds what torch does not write")

    dispatch[pickle.BUILD[0]] = _build  # type: ignore[assignment]
    dispatch[pickle.SETITEM[0]] = _setitem  # type: ignore[assignment]
    dispatch[pickle.SETITEMS[0]] = _setitems  # type: ignore[assignment]
    for _code in _UNWRITTEN:
        dispatch[_code[0]] = _refuse  # type: ignore[assignment]


class _Reader(Watched):
    def __init__(self, file: IO[bytes], stored: Callable[[Any], int], size: int) -> None:
        super().__init__(file, encoding="bytes")
        self.stored, self.left, self.held = stored, size, set[Any]()

    def find_class(self, module: str, name: str) -> Any:
        import torch

        module = "builtins" if module == "__builtin__" else module  # as older protocols call it
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in ("torch", "torch.storage") and name.removesuffix("Storage") in _BYTES and name.endswith("Storage"):
            return _Named(name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return _Named(name)
        if (module, name) in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("numpy", "ndarray")):
            return _Named(name)
        given = [entry if isinstance(entry, tuple) else (entry, "") for entry in torch.serialization.get_safe_globals()]
        if f"{module}.{name}" in [path or f"{it.__module__}.{it.__qualname__}" for it, path in given]:
            return _Trusted
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, key, numbers = pid[1], pid[2], pid[4]
        if not isinstance(kind, _Named) or not isinstance(key, _SCALARS) or type(numbers) is not int or numbers < 0:
            raise Suspect("it holds a tensor that is none")
        each = _BYTES[kind.name.removesuffix("Storage")]
        key = key.decode("ascii", "replace") if isinstance(key, bytes) else key
        if key not in self.held:  # room is made for each, before any is read
            self.held.add(key)
            self.left -= numbers * each
        if numbers * each > self.stored(key) or self.left < 0:
            raise Suspect("it holds a tensor of more numbers than are there")
        return _Storage(numbers)

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError("it asks for an extension")

    def build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        built = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(built, (_Dtype, _Array, _Tensor)):
            built.__setstate__(state)
        elif not isinstance(built, (dict, _Trusted)):
            raise Suspect("it changes what it has not made")


class _Trusted:
    """Stands for what a program of yours has named to torch as safe (`torch.serialization.add_safe_globals`)."""

    def __init__(self, *_: Any) -> None:
        pass
