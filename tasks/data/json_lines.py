"""What JSON lines hold, told without a parser and before pyarrow's sees them: how deep they are nested, and how many
places the table has that it makes of them.
"""

from __future__ import annotations

import re
from pathlib import Path

#: levels of JSON, and bytes of a line of it: pyarrow reads none that is longer
DEEPEST, LONGEST = 100, 2 << 20
#: names in all lines, or of a table of another kind: pyarrow makes a column of each
MOST_NAMES = 2000
#: places of the table, and for each byte of the file: a line that leaves a name out has a place for it, too
MOST_PLACES, PLACES_A_BYTE = 20_000_000, 20
#: a text, which ends with its line at the latest; a bracket; a comma, and numbers after it with theirs
_PART = re.compile(rb'"(?:[^"\\\r\n]|\\[^\r\n])*+"?|[][{}]|,[^][{}"]*|null')


def check_lines(file: Path) -> None:
    """Raise a ValueError for JSON that would end the process in pyarrow's parser (nested without end, or null where an
    object should be), or that makes a table of names or places without end.
    """
    columns = _Columns()
    with file.open("rb") as opened:
        for number, line in enumerate(iter(lambda: opened.readline(LONGEST + 1), b""), 1):
            if len(line) > LONGEST:
                raise ValueError(f"line {number} has more than {LONGEST >> 20} MB")
            columns.read(line, number)
            if len(columns.names) > MOST_NAMES:
                raise ValueError(f"it has more than {MOST_NAMES} names of columns")
            if columns.places > MOST_PLACES and columns.places > PLACES_A_BYTE * opened.tell():
                raise ValueError(f"few of its {number} lines hold any of its {len(columns.nodes)} columns")


class _Columns:
    """The columns of a table: one for each path of names, each with a place for every object of the file, or for every
    member of the lists that it stands in. An object may go on in the next line, or be the second of one.
    """

    def __init__(self) -> None:
        self.names: set[bytes] = set()
        self.nodes: dict[tuple[int, bytes], int] = {}  # a column by the one above it, which is 0 for the first
        self.part = [0]  # of each column: the table or list in which it stands
        self.rows, self.width = [0], [0]  # of each of these
        self.places = 0
        self._open: list[tuple[int, bool]] = []  # columns, and whether each is an object's
        self._node, self._named = 0, False  # what the next value belongs to, and whether a name comes before it

    def read(self, line: bytes, number: int) -> None:
        """Take in a line."""
        before = b""
        for part in _PART.findall(line):
            first = part[:1]
            if first == b'"':
                if self._named:
                    self._named = False
                    self.names.add(part)
                    self._node = self._column(part, self._open[-1][0])
            elif first == b"{":
                if not self._open:
                    self._node = 0
                    self._add(0, 1)
                self._open.append((self._node, True))
                self._named = True
            elif first == b"[":
                self._node = self._column(part, self._node)
                self._open.append((self._node, False))
                self._add(self.part[self._node], 1)
            elif first == b",":
                self._named = bool(self._open) and self._open[-1][1]
                if self._open and not self._named:
                    self._add(self.part[self._node], part.count(b","))
            elif first in b"]}":
                self._named = False
                if before == b"[":  # an empty list
                    self._add(self.part[self._node], -1)
                if self._open:
                    self._open.pop()
                self._node = self._open[-1][0] if self._open else 0
            elif not self._open:
                raise ValueError(f"line {number} is null: an object has to stand there")
            before = part
            if len(self._open) > DEEPEST:
                raise ValueError(f"line {number} is nested more than {DEEPEST} levels deep")

    def _column(self, name: bytes, above: int) -> int:
        """That of a name, or of a list's members, below another."""
        node = self.nodes.setdefault((above, name), len(self.nodes) + 1)
        if node == len(self.part):
            part = self.part[above]
            if name == b"[":
                part = len(self.rows)
                self.rows.append(0)
                self.width.append(0)
            self.part.append(part)
            self.width[part] += 1
            self.places += self.rows[part]
        return node

    def _add(self, part: int, rows: int) -> None:
        self.rows[part] += rows
        self.places += rows * self.width[part]
