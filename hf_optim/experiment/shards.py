"""Checkpoints of sharded runs (torch's distributed ones), read as plain data.

torch itself unpickles their `.metadata`, and every value in them that is no tensor, by calling whatever these name; and
it reads from wherever `.metadata` says that the numbers lie.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.errors import one_line

#: torch's own switch: nothing but plain data is loaded, whatever a caller asks for; and its contrary
_ONLY, _NOT_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
#: module -> what a `.metadata` names of it, beside torch's dtypes
_NAMED = {
    _METADATA: {"Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata",
                "ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"},
    _FILES: {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}  # fmt: skip


class _Reader(pickle._Unpickler):  # Python's own, in which a step can be refused
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _NAMED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)

    def _build(self) -> None:
        if isinstance(self.stack[-2], type):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it changes a class")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = _build  # type: ignore[assignment]


def read_metadata(file: Any) -> Any:
    """What an open `.metadata` holds; an UnpicklingError for anything else, or for a file that is not beside it."""
    metadata = _Reader(file).load()
    stored = getattr(metadata, "storage_data", None)
    places = [getattr(info, "relative_path", None) for info in stored.values()] if isinstance(stored, dict) else [None]
    if not all(isinstance(place, str) and Path(place).name == place for place in places):
        raise pickle.UnpicklingError("its .metadata names a file that is not beside it")
    return metadata


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
    before, unpickling = {name: os.environ.pop(name, None) for name in (_ONLY, _NOT_ONLY)}, module.pickle
    refused: list[pickle.UnpicklingError] = []  # torch tries another file, and then says something else

    def load(file: Any) -> Any:
        try:
            return read_metadata(file)
        except pickle.UnpicklingError as error:
            refused.append(error)
            raise

    os.environ[_ONLY], module.pickle = "1", SimpleNamespace(load=load)
    try:
        yield
    except CheckpointException as error:
        why = next(iter(error.failures.values()))[0]
        if not isinstance(why, Exception):  # an interrupt
            raise why from None
        if refused or isinstance(why, pickle.UnpicklingError):
            raise pickle.UnpicklingError(str(refused[0] if refused else why)) from None
        raise RuntimeError(one_line(why)) from None
    finally:
        module.pickle = unpickling
        del os.environ[_ONLY]
        os.environ.update({name: value for name, value in before.items() if value is not None})
