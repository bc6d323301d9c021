"""Tables of files: parquet, CSV and JSON lines. Whatever is wrong with one is one line that names it.

What pyarrow says of a damaged file, or of one that only looks like a table, is of many kinds; none of them is ours.
"""

from __future__ import annotations

import csv
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_optim.core import shape
from hf_optim.errors import UserError, first_line
from hf_optim.experiment.plain_json import parse_json
from hf_optim.tasks.data.json_lines import MOST_NAMES, check_lines

#: bytes in which pyarrow looks for a CSV's names
_HEAD = 1 << 20
#: rows and bytes of a table in memory; a parquet file of a few kilobytes may say any number of them
MOST_ROWS, LARGEST = 10_000_000, 16 << 30
AT_ONCE = 1024  # rows


def read(file: Path, texts: Iterable[str] = ()) -> Any:
    """The pyarrow table of a file, by its ending.

    Args:
        texts: columns that a CSV file holds as texts, whatever they look like.

    Raises:
        UserError: it is empty, or cannot be read.
    """
    import pyarrow.csv
    import pyarrow.json

    readers: Mapping[str, Callable[[Path], Any]] = {
        ".parquet": _parquet,
        ".csv": lambda path: pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pyarrow.string())),
        ),
        ".jsonl": pyarrow.json.read_json,
    }
    try:
        if file.suffix == ".jsonl":
            check_lines(file)
        if file.suffix == ".csv":
            _check_names(file)
        table = readers[file.suffix](file)
        _ = table.column_names  # which may be no texts
        return table
    except UserError:
        raise
    except Exception as error:
        if (file.is_file() and not file.stat().st_size) or "Empty" in str(error):
            raise UserError(f"data: {file} is empty") from error
        raise UserError(f"data: {file} cannot be read as {file.suffix[1:]}: {first_line(error)}") from error


def column(table: Any, name: str, file: Path) -> list[Any]:
    """The values of a column, which the table has.

    Raises:
        UserError: it stands there twice, holds lists or nothing, or what is no value in Python (a text that is not
            UTF-8, a year 10,000).
    """
    if table.column_names.count(name) > 1:
        raise UserError(f"data: {file} has the column {name!r} twice: keep one")
    if len(table) and file.suffix == ".parquet" and str(table.schema.field(name).type) == "null":
        raise UserError(f"data: {file}: column {name!r} holds lists, or nothing: it has to hold one value a row")
    try:
        values: list[Any] = table[name].to_pylist()
    except Exception as error:
        raise UserError(f"data: {file}: column {name!r} cannot be read: {first_line(error)}") from error
    return values


def why(error: Exception) -> str:
    """What an error of reading says. Where a byte stands that is no UTF-8 it tells of the part that was read last."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.object[error.start]:#04x}: {error.reason}"
    return str(error)


def listed(names: Sequence[object]) -> str:
    """Columns in a message: a table may have a million."""
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def _parquet(file: Path) -> Any:
    """A table. What the file says of its size need not be so, nor does it tell how often a value is repeated: bytes are
    counted as they are read. A column of lists is not read, and stands there empty: a few bytes make a row of a
    billion members.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as opened:
        if opened.metadata.num_columns > MOST_NAMES:  # each is looked up among all of them, again and again
            raise ValueError(f"it has more than {MOST_NAMES} columns")
        groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
        rows, size = sum(group.num_rows for group in groups), sum(group.total_byte_size for group in groups)
        _check_size(file, rows, size)
        leaves = [opened.schema.column(number) for number in range(len(opened.schema))]
        lists = {leaf.path.partition(".")[0] for leaf in leaves if leaf.max_repetition_level}
        read = dict.fromkeys(leaf.path for leaf in leaves if leaf.path.partition(".")[0] not in lists)
        parts, size = [], 0
        try:
            with _at_most(LARGEST + LARGEST // 8):
                for part in opened.iter_batches(AT_ONCE, columns=list(read)):
                    size += sum(map(_unpacked, part.columns))
                    _check_size(file, rows, size)
                    parts.append(part)
        except MemoryError:  # a part alone is too much: one value of many megabytes, meant by each of its rows
            raise UserError(
                f"data: {file}: {rows} rows take more than {LARGEST >> 30} GB, or than this machine has free: give "
                "fewer of them"
            ) from None
        names = [name for name in opened.schema_arrow.names if name.partition(".")[0] not in lists]
        schema = pyarrow.schema([opened.schema_arrow.field(name) for name in names], opened.schema_arrow.metadata)
        table = pyarrow.Table.from_batches(parts, schema)
    for name in sorted(lists):
        table = table.append_column(name, pyarrow.nulls(len(table)))
    return table


@contextmanager
def _at_most(more: int) -> Iterator[None]:
    """Within the block the system gives this process so many bytes more at the most: a library that would take them
    all at once raises MemoryError. (Only Linux tells how many it has.)
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([held + more, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _unpacked(values: Any) -> int:
    """Bytes of an array's values in Python: one that is kept once, and meant by many rows, is made for each."""
    import pyarrow.compute
    import pyarrow.types

    if pyarrow.types.is_struct(values.type):
        return sum(map(_unpacked, values.flatten()))
    if not pyarrow.types.is_dictionary(values.type):
        return int(values.nbytes)
    kept = values.dictionary
    each = max(1, kept.nbytes // max(1, len(kept)))
    if hasattr(kept, "total_values_length") and len(kept):
        each = pyarrow.compute.max(pyarrow.compute.binary_length(kept)).as_py() or 1
    return len(values) * int(each)


def _check_size(file: Path, rows: int, size: int) -> None:
    """Raise a UserError for more rows or bytes than are read."""
    if rows > MOST_ROWS or size > LARGEST:
        raise UserError(
            f"data: {file} holds {rows:,} rows of {size / 1e9:.1f} GB in all, and at most {MOST_ROWS:,} rows "
            f"and {LARGEST >> 30} GB are read: give fewer of them"
        )


def _check_names(file: Path) -> None:
    """Raise a ValueError for a CSV that names columns without end."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD).decode("latin1").splitlines(keepends=True)
    try:
        names = next(csv.reader(head), [])
    except csv.Error as error:
        raise ValueError(f"its first line names no columns: {error}") from None
    if len(names) > MOST_NAMES:
        raise ValueError(f"it has more than {MOST_NAMES} names of columns")


def class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> list[str]:
    """The names of a column's classes as datasets writes them beside a table; none where it did not."""
    try:
        told = parse_json((metadata or {}).get(b"huggingface", b"{}").decode())
    except ValueError:
        return []
    if not shape.fits(told, {"info": {"features": {label: {"names": [str]}}}}):
        return []
    return list(told["info"]["features"][label]["names"])
