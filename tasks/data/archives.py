"""Files of archives that come from elsewhere, read without unpacking them: .tar, .tar.gz, .tgz, .zip, .gz.

Nothing is written, so that no name can lead anywhere; names that try to (absolute, or with `..`), links, devices and
encrypted entries are refused all the same, and so is what grows beyond the sizes below: the papers' archives are
smaller by far.
"""

from __future__ import annotations

import functools
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from hf_optim.errors import UserError

#: bytes of a file, bytes of all files of an archive, files of an archive
LARGEST, LARGEST_ARCHIVE, MOST = 1 << 30, 8 << 30, 500_000
#: bytes of what stands between two files of a tar
LARGEST_HEADERS = 1 << 20
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, OSError,
           NotImplementedError, RuntimeError, ValueError, IndexError, KeyError, struct.error)  # fmt: skip


def is_archive(path: Path) -> bool:
    """Whether `path` is called as an archive of several files is."""
    return path.is_file() and path.name.endswith(ARCHIVES)


def read_file(path: Path) -> bytes:
    """The content of a file, decompressed if it ends in .gz.

    Raises:
        UserError: it cannot be read, or has more than `LARGEST` bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            return _bounded(opened, str(path))
    except UserError:
        raise
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def read_archive(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The files of an archive whose names (`folder/file`, without a leading `./`) are `wanted`, decompressed if they
    end in .gz, which is then taken off.

    Raises:
        UserError: an archive that is damaged, too large, or holds what no data set does.
    """
    read: dict[str, bytes] = {}
    total = 0
    try:
        entries = _zip(path) if path.suffix == ".zip" else _tar(path)
        for name, size, opened in entries:
            total += size
            if total > LARGEST_ARCHIVE or size > LARGEST:
                raise UserError(
                    f"data: {path} holds more than {LARGEST_ARCHIVE >> 30} GB in all or {LARGEST >> 30} GB in one "
                    "file: it is none of the data sets, or unpack it first"
                )
            plain = name.removesuffix(".gz")
            if not wanted(plain):
                continue
            with opened() as stream:
                read[plain] = _bounded(gzip.open(stream) if plain != name else stream, f"{path}: {name}")
            if plain != name:
                total += len(read[plain])
    except UserError:
        raise
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    return read


def _tar(path: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    with path.open("rb") as begins:
        zipped = begins.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as stored:
        watched = _Watched(stored, path)
        archive: Any = tarfile.open(fileobj=cast(Any, watched), mode="r|")  # noqa: SIM115  # it holds `watched` alone
        for number, member in enumerate(archive):
            watched.left = LARGEST_HEADERS + member.size
            archive.members.clear()  # it keeps all that it has seen
            _few(path, number)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise UserError(f"data: {path}: {member.name!r} is a link or a device, and data are plain files")

            def opened(member: tarfile.TarInfo = member) -> IO[bytes]:
                stream = archive.extractfile(member)
                assert stream is not None
                return stream

            yield _plain(path, member.name), member.size, opened


def _zip(path: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    with zipfile.ZipFile(path) as archive:
        for number, entry in enumerate(archive.infolist()):
            _few(path, number)
            if entry.is_dir():
                continue
            if (entry.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise UserError(f"data: {path}: {entry.filename!r} is a link or a device, and data are plain files")
            yield _plain(path, entry.filename), entry.file_size, functools.partial(archive.open, entry)


class _Watched:
    """A tar's bytes. What it says about a file is read into memory whole, and may be made to go on for ever."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
        self.stream, self.path, self.left = stream, path, LARGEST_HEADERS

    def read(self, size: int) -> bytes:
        """The next bytes; a `UserError` where more come than `left`."""
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise UserError(
                f"data: {self.path} describes a file in more than {LARGEST_HEADERS >> 20} MB: it is damaged"
            )
        return content


def _few(path: Path, number: int) -> None:
    if number >= MOST:
        raise UserError(f"data: {path} holds more than {MOST:,} files: it is none of the data sets, or unpack it first")


def _plain(path: Path, name: str) -> str:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts:
        raise UserError(f"data: {path}: the name {name!r} leads out of the archive")
    return "/".join(parts)


def _bounded(stream: IO[bytes] | gzip.GzipFile, name: str) -> bytes:
    content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"data: {name} grows beyond {LARGEST >> 30} GB: it is none of the data sets")
    return content


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"data: {path} cannot be read ({' '.join(str(error).split()) or type(error).__name__}): fetch it anew"
    )
