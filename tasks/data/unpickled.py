"""Pickles of plain data and NumPy arrays of numbers, as CIFAR's `python` archives are, read without running anything.

A pickle is a program that may call whatever it names. Here it can name a handful, and none is the thing itself: it
builds the classes below, which take bytes, check them, and become arrays at the end.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

from hf_optim.errors import UserError
from hf_optim.experiment.saved_files import Watched

#: parts of a pickle; CIFAR-100's have half a million. Packed a thousand times smaller, they are minutes to read
MOST_PARTS = 10_000_000
NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


class _Dtype:
    """Stands for `numpy.dtype(name, align, copy)`; what is said of it afterwards (byte order, fields) is not heard."""

    __slots__ = ("name",)

    def __init__(self, name: Any, *_: Any) -> None:
        name = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        if name not in NUMBERS:
            raise pickle.UnpicklingError(f"an array of {name!r}, and not of numbers")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for an array that is still empty; `__setstate__` fills it."""

    value: Any = None  # of the class: a pickle may make one without `__init__`

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        sizes = shape if isinstance(shape, tuple) else ()
        known = isinstance(dtype, _Dtype) and isinstance(raw, bytes) and len(sizes) <= 8
        if not known or not all(type(size) is int and 0 <= size < 2**40 for size in sizes):
            raise pickle.UnpicklingError("an array that is not of plain numbers")
        kind = np.dtype("<" + dtype.name)
        if math.prod(sizes) * kind.itemsize != len(raw):
            raise pickle.UnpicklingError("an array whose shape is not that of its numbers")
        self.value = np.frombuffer(raw, kind).reshape(sizes, order="F" if fortran else "C")


class _Bytes:
    """Stands for `_codecs.encode(text, "latin1")` and `bytes()`, by which protocols before 3 write bytes: each text
    once, so that there are no more of them than a pickle has.
    """

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, text: str = "", encoding: str = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("bytes in an unknown way")
        self.left -= len(text)
        if self.left < 0:
            raise pickle.UnpicklingError("it makes more bytes than it has")
        return text.encode("latin1")


_BYTES = {("_codecs", "encode"), ("__builtin__", "bytes")}
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): "numpy.ndarray",  # it is only named, as what is to be built
    ("numpy", "dtype"): _Dtype,
}


class _Parts(io.BytesIO):
    """A pickle's bytes, which are read part by part."""

    left = MOST_PARTS

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes; an UnpicklingError where there were too many parts."""
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it is made of more than {MOST_PARTS:,} parts")
        return super().read(size)


class _Reader(Watched):
    dispatch = dict(Watched.dispatch)

    def __init__(self, content: bytes) -> None:
        super().__init__(_Parts(content), encoding="bytes")
        self._bytes = _Bytes(len(content))

    def build(self) -> None:
        if not isinstance(self.stack[-2], (_Array, _Dtype)):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it changes what it names")
        self.load_build()  # type: ignore[attr-defined]

    def _dict(self) -> None:
        """As protocol 0 begins a mapping."""
        for key in self.stack[::2]:  # type: ignore[attr-defined]
            self.check_key(key)
        self.load_dict()  # type: ignore[attr-defined]

    def _frame(self) -> None:
        """What it holds is read as it comes, and so counted."""
        self.read(8)  # type: ignore[attr-defined]

    dispatch[pickle.DICT[0]] = _dict  # type: ignore[assignment]
    dispatch[pickle.FRAME[0]] = _frame  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._bytes if (module, name) in _BYTES else _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError("it asks for an extension")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for something outside")


def read(content: bytes, place: str) -> dict[str, Any]:
    """The mapping that a pickle holds: names to arrays of numbers, lists, numbers and byte strings.

    Raises:
        UserError: it holds or asks for anything else, or is damaged.
    """
    try:
        value = _Reader(content).load()
        if not isinstance(value, dict):
            raise UserError(f"data: {place} holds no mapping, as a batch of CIFAR does")
        names = {
            key.decode("ascii", "replace") if isinstance(key, bytes) else str(key): entry
            for key, entry in value.items()
        }
    except UserError:
        raise
    except Exception as error:  # a pickle may fail in any way
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data: {place} is no pickle of plain arrays ({why}): nothing of it was run") from None
    return {key: entry.value if isinstance(entry, _Array) else entry for key, entry in names.items()}
