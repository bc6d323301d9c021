"""Checkpoints of sharded runs (torch's distributed ones), read as plain data.

torch itself unpickles their `.metadata`, and every value in them that is no tensor, by calling whatever these name; and
it reads from wherever `.metadata` says that the numbers lie. Each value is a file of `torch.save` within a file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import torch

from hf_optim.errors import one_line
from hf_optim.experiment import saved_files

_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
#: module -> what a `.metadata` names of it, beside torch's dtypes
_NAMED = {
    _METADATA: {"Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata",
                "ChunkStorageMetadata", "TensorProperties"},
    _FILES: {"_StorageInfo"},
    "torch": {"Size"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}  # fmt: skip
#: parts of a `.metadata` for each of its bytes; torch's own has fewer than one
MOST_PARTS = 16


def _layout(name: Any = None) -> Any:
    return torch.serialization._get_layout(name) if isinstance(name, str) else None  # type: ignore[no-untyped-call]


def _memory_format(number: Any = None) -> Any:
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    return _MEM_FORMAT_ENCODING(number) if type(number) is int else None


#: what is called in the place of what looks its argument up: a tuple of tuples of tuples would be looked up for ever
_CALLED = {
    ("torch.serialization", "_get_layout"): _layout,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _memory_format,
    ("collections", "OrderedDict"): saved_files.mapping,
}


def _key(key: Any) -> None:
    """Raise unless it is a name, or the place of a part of a tensor."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    parts = [key]
    if type(key) is MetadataIndex:
        parts = [key.fqn, *(key.offset or ()), key.index or 0]
    if not all(type(part) in (str, int) for part in parts):
        raise pickle.UnpicklingError("it holds a mapping whose keys are no names")


class _Reader(saved_files.Watched):
    refusal = pickle.UnpicklingError

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLED:
            return _CALLED[module, name]
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _NAMED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)

    def build(self) -> None:
        if isinstance(self.stack[-2], type):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it changes a class")
        self.load_build()  # type: ignore[attr-defined]

    def check_key(self, key: Any) -> None:
        _key(key)


def read_metadata(file: Any) -> Any:
    """What an open `.metadata` holds; an UnpicklingError for anything else, or for a file that is not beside it."""
    metadata = _Reader(file).load()
    _check_parts(metadata, file.tell())
    stored: Any = getattr(metadata, "storage_data", None)
    places = [getattr(info, "relative_path", None) for info in stored.values()] if isinstance(stored, dict) else [None]
    if not all(isinstance(place, str) and Path(place).name == place for place in places):
        raise pickle.UnpicklingError("its .metadata names a file that is not beside it")
    if any(getattr(info, "transform_descriptors", None) for info in stored.values()):
        raise pickle.UnpicklingError("its values are packed")
    return metadata


def _check_parts(value: Any, size: int) -> None:
    """Raise for parts that hold another one a million times: to compare them, or to name them in an error, is without
    end.
    """
    left, count = [value], 0
    while left:
        one = left.pop()
        inner = [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, (list, tuple)) else ()
        inner = [*inner, *vars(one).values()] if hasattr(one, "__dict__") and not isinstance(one, type) else inner
        count += len(inner)
        if count > MOST_PARTS * size:
            raise pickle.UnpicklingError("its parts hold each other without end")
        left += inner


class _Part(io.RawIOBase):
    """A part of a file as torch hands it over, whose own `seek` counts the wrong way from its end."""

    def __init__(self, file: Any) -> None:
        self.file, self.place = file, 0
        file.seek(0, io.SEEK_END)
        self.size = file.tell()
        file.seek(max(0, self.size - 1))
        if len(file.read(1)) != 1:
            raise EOFError("it is cut short")

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        if self.place < 0:
            raise OSError("before its beginning")
        return self.place

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.place)
        read = self.file.read(max(0, min(len(buffer), self.size - self.place)))
        buffer[: len(read)] = read
        self.place += len(read)
        return len(read)


@contextmanager
def plain() -> Iterator[None]:
    """Within it torch's distributed checkpoints are read as plain data.

    Raises:
        UnpicklingError: one holds more.
        RuntimeError: one cannot be read. (torch's own error is none that `except Exception` would catch.)
    """
    if not torch.distributed.is_available():  # a build that reads no such checkpoint
        yield
        return
    from torch.distributed.checkpoint import filesystem
    from torch.distributed.checkpoint.api import CheckpointException

    module: Any = filesystem
    unpickling = module.pickle
    refused: list[pickle.UnpicklingError] = []  # torch tries another file, and then says something else

    def load(file: Any) -> Any:
        try:
            return read_metadata(file)
        except pickle.UnpicklingError as error:
            refused.append(error)
            raise

    def load_value(file: Any, *given: Any, **how: Any) -> Any:
        if hasattr(file, "seek"):  # files by name are looked through before
            try:
                saved_files.check_open(cast(IO[bytes], _Part(file)))
            except Exception as error:
                raise pickle.UnpicklingError(one_line(error)) from None
            file.seek(0)
        return torch_load(file, *given, **how)

    torch_load: Any = torch.load
    module.pickle, torch.load = SimpleNamespace(load=load), load_value  # type: ignore[assignment]
    try:
        with saved_files.only_weights():
            yield
    except CheckpointException as error:
        why = next(iter(error.failures.values()))[0]
        if not isinstance(why, Exception):  # an interrupt
            raise why from None
        if refused or isinstance(why, pickle.UnpicklingError):
            raise pickle.UnpicklingError(str(refused[0] if refused else why)) from None
        raise RuntimeError(one_line(why)) from None
    finally:
        module.pickle, torch.load = unpickling, torch_load
