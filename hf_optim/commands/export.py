"""The command `hf-optim export`: a study's table and charts, for a paper."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_optim.commands.parser import Parser
from hf_optim.core.safe_text import line, terminal
from hf_optim.errors import UserError

ABOUT = "write a study's table (LaTeX, Markdown, CSV) and charts (PDF) for a paper"
TABLES = ("latex", "markdown", "csv")
CHARTS = ("pdf", "svg", "png")
#: of no table: what studies, runs and claims are made of, and may be in no other place
MADE_OF = (".json", ".jsonl", ".yaml", ".yml", ".py", ".ipynb")


def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the table, write the charts; gives 0."""
    parser = Parser(
        "hf-optim export",
        "Write a study's result as a table for a paper, and each of its charts as a file.\n"
        "Mean and deviation to the digits that they are good for; the best bold, a mark for what may be the best\n"
        "and for verdicts, and a note below that explains them.",
        (
            "hf-optim export studies/quickstart --table latex",
            'hf-optim export studies/quickstart --figure pdf --width "icml column"',
        ),
    )
    add = parser.add_argument
    add("folder", metavar="STUDY", help="the study's folder")
    add("--table", choices=TABLES, help="the table in this format, on the terminal or in --output")
    add("--figure", choices=CHARTS, help="every chart in this format, into --output (default: STUDY/figures)")
    add("--output", metavar="PATH", help="a file for --table, a folder for --figure")
    add("--width", metavar="W", help="inches, or 'neurips column', 'icml page', 'ieee column', ... (default: 5.5)")
    add("--font-size", type=float, metavar="PT", help="points of the text in charts (default: 9)")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return export(
        options.folder,
        table=options.table,
        figure=options.figure,
        output=options.output,
        width=options.width,
        font_size=options.font_size,
    )


def export(
    folder: str,
    *,
    table: str | None = None,
    figure: str | None = None,
    output: str | None = None,
    width: str | None = None,
    font_size: float | None = None,
) -> int:
    """See `main`. Raises UserError for what is wrong, before anything is written."""
    if (table is None) == (figure is None):
        raise UserError(f"say what to export: --table {'|'.join(TABLES)}, or --figure {'|'.join(CHARTS)}")
    if table is not None and (width is not None or font_size is not None):
        raise UserError(f"--{'width' if width is not None else 'font-size'} belongs to --figure")
    if font_size is not None and not 3 <= font_size <= 40:
        raise UserError(f"--font-size: points from 3 to 40, got {font_size:g}")
    file = Path(output or "")  # without a slash at its end
    if table is not None and file.suffix.lower() in MADE_OF and os.path.lexists(file):
        raise UserError(f"{output} is no table, and none takes its place: choose another --output")
    from hf_optim.experiment.disk import writing
    from hf_optim.experiment.files import write_atomically
    from hf_optim.experiment.leftovers import sweep
    from hf_optim.study.findings import table as tables
    from hf_optim.study.folder import results as records

    results = records.load(Path(folder))
    built = tables.build(results)
    records.tell_unreadable([results])
    with writing(Path(output or folder)):
        if table is not None:
            from hf_optim.study.findings import naming
            from hf_optim.study.report import paper

            built = tables.for_readers(built, naming.shown(results.plan))
            text = {"latex": paper.latex, "markdown": paper.markdown, "csv": paper.csv}[table](built)
            if output is None:
                print(terminal(text), end="")
            else:
                sweep(Path(output).parent, Path(output).name)
                write_atomically(Path(output).parent, Path(output).name, text)
                print(line(output))
            return 0
        assert figure is not None
        from hf_optim.study.report import figures

        inches = figures.width_of(width or "5.5")
        where = (Path(output), "") if output else (Path(folder), "figures")
        for path in figures.write_all(results, built, *where, kind=figure, width=inches, font=font_size or 9):
            print(line(path))
    return 0
