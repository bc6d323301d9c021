"""The command `hf-optim results`: what studies found, filtered, grouped, compared, exported or merged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_optim.commands.parser import Parser
from hf_optim.core import safe_text
from hf_optim.core.wording import both, counted
from hf_optim.errors import UserError

if TYPE_CHECKING:
    from hf_optim.study.folder.results import Results

ABOUT = "filter, group, compare, export and merge what studies found"


def main(argv: Sequence[str] | None = None) -> int:
    """Show, export or merge; gives what `results` gives."""
    parser = Parser(
        "hf-optim results",
        "Show the runs of study folders, a line a run, straight from their records.",
        (
            "hf-optim results studies/*",
            "hf-optim results studies/quickstart --compare NAdamW AdamW",
            "hf-optim results studies/* --by task,optimizer --export table.tex",
        ),
    )
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", help="folders of studies")
    add("--where", action="append", default=[], metavar="COND", help="e.g. 'optimizer=adam*,lr<=0.01,status!=ok'")
    add("--columns", metavar="NAMES", help="columns, with wildcards, e.g. 'optimizer,seed,test_*'")
    add("--by", metavar="NAMES", help="group by these columns: counts, means and deviations")
    add("--compare", nargs=2, metavar=("A", "B"), help="two optimizers (or conditions), paired by seed, a line a task")
    add("--export", metavar="FILE", help="write it to a .csv, .md, .tex (booktabs) or .parquet file")
    add("--merge", metavar="INTO", help="make one study of all, in this new folder, with its report")
    add("--keep-first", action="store_true", help="where two records of a run differ, take the first folder's")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return results(
        options.folders,
        where=options.where,
        columns=options.columns,
        by=options.by,
        compare=tuple(options.compare) if options.compare else None,
        export=options.export,
        into=options.merge,
        keep_first=options.keep_first,
    )


def results(
    names: Sequence[str],
    *,
    where: Sequence[str] = (),
    columns: str | None = None,
    by: str | None = None,
    compare: tuple[str, str] | None = None,
    export: str | None = None,
    into: str | None = None,
    keep_first: bool = False,
) -> int:
    """Shows the runs of the study folders `names`, a line a run, or what is asked of them. Gives 0, or 2 where one of
    several folders cannot be read: that is a line, and the rest is shown.

    Args:
        names: folders of studies.
        where: conditions, see `rows.where`.
        columns: names separated by commas, with wildcards; default those that tell runs apart (for CSV and Parquet,
            all).
        by: columns to group by, separated by commas: counts, means and standard deviations for each combination.
        compare: two optimizers, or conditions; see `pairs.compare`.
        export: a file for the same table, in the format of its ending: .csv, .md, .tex or .parquet.
        into: merge the studies into this new folder instead, with tables and report.
        keep_first: where two records of one run differ, take that of the folder named first.

    Raises:
        UserError: for what is wrong with the folders, the conditions or the file, before anything is written.
    """
    from hf_optim.study.folder import pairs, rows
    from hf_optim.study.folder import results as records
    from hf_optim.study.report import exports

    folders = rows.folders(names)
    if into is not None:
        if where or columns or by or compare or export:
            raise UserError("--merge takes whole studies: use it alone")
        _merge(folders, Path(into), keep_first)
        return 0
    if keep_first:
        raise UserError("--keep-first belongs to --merge")
    if by and compare:
        raise UserError("--by and --compare are two tables: ask for one of them")
    if export:
        exports.check_format(Path(export))
    said = ""
    loaded, code = _load(folders, alone=len(folders) == 1 or compare is not None)
    every = rows.of_several(loaded)
    some = rows.where(every, where)
    if not some:
        met = f"no run meets {both(where)}{rows.meant(every, where)}"
        raise UserError(met if where else "these studies have no runs")
    if compare or by:  # which have no column of errors
        records.tell_unreadable(loaded)
    if compare:
        table, said = pairs.compare(loaded, [row for row in some if row["stage"] == "judged"], *compare)
        shown = rows.choose(table, columns, list(table[0]))
    elif by:
        keys = rows.choose(some, by, ())
        table = rows.group(some, keys, rows.choose(some, columns, rows.judged_by(some)))
        shown, said = list(table[0]), rows.told_twice(some)
    else:
        table = some
        everything = export and Path(export).suffix in (".csv", ".parquet")
        shown = rows.choose(some, columns, rows.columns(some) if everything else rows.usual_columns(some))
    if export:
        exports.write(table, shown, Path(export))
        print(safe_text.line(f"{counted(len(table), 'row')}, {counted(len(shown), 'column')}: {export}"))
    else:
        exports.show(table, shown)
    if said:
        safe_text.say(safe_text.console(), said)
    return code


def _load(folders: Sequence[Path], *, alone: bool) -> tuple[list[Results], int]:
    """The studies, and the exit code: unless it is `alone`, one that cannot be read is a line."""
    from hf_optim.study.folder import results as records

    loaded, code = [], 0
    for folder in folders:
        try:
            loaded.append(records.load(folder))
        except UserError as error:
            if alone:
                raise
            print(safe_text.line(f"error: {error}"), file=sys.stderr)
            code = 2
    return loaded, code


def _merge(folders: Sequence[Path], into: Path, keep_first: bool) -> None:
    from hf_optim.study import conduct
    from hf_optim.study.folder import merge

    made: list[conduct.Written] = []

    def complete(copied: Path) -> None:
        made.append(conduct.write(copied))
        if made[0].refused is not None:
            raise made[0].refused

    merge.merge(folders, into, keep_first=keep_first, complete=complete)
    for why in merge.left_out(into):
        print(safe_text.line(f"left out: {why}"))
    conduct.show(made[0], into)
