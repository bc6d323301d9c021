"""A paper's table, charts and citations."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from study_fakes import make_study

import hf_optim
from hf_optim.commands.cite import entry
from hf_optim.commands.main import main
from hf_optim.study.findings import naming, table
from hf_optim.study.folder import results as records
from hf_optim.study.report import figure_texts, figures, paper
from hf_optim.study.report.tables import show
from hf_optim.study.statistics.paired import summarise


@pytest.mark.parametrize(
    "values, decimals",
    [
        ([0.93, 0.94], 3),
        ([0.9310, 0.9352], 3),
        ([61.0, 68.0], 0),
        ([0.90, 0.92], 3),
        ([1.0, 1.1357], 2),
        ([1, 1], None),
    ],
)
def test_digits_follow_the_deviation(values, decimals):
    # deviations: 0.0071, 0.0030, 4.9, 0.014 (two figures: it begins with 1), 0.096 (which rounds to 0.1: two), none
    assert paper.digits(summarise(values)) == decimals


def test_rounding_makes_no_digits_and_no_second_best():
    """Equal accuracies whose mean differs in the last bit asked for 17 decimals of the whole column."""
    assert paper.digits(summarise([0.7, 0.7, 0.7])) is None
    assert paper.digits(summarise([0.7, 0.7 + 1e-16, 0.7])) is None


def value(label, seed):
    """b well ahead, c behind, d as b but for chance."""
    noise = 0.001 * ((seed * 7919 + len(label)) % 5)
    return (
        {"adamw": 0.8, "best": 0.9, "behind": 0.7, "close": 0.9}[label]
        + noise
        + 0.002 * (label == "close") * (-1) ** seed
    )


@pytest.fixture
def folder(tmp_path):
    return make_study(tmp_path / "s", ("adamw", "best", "behind", "close"), ("A", "B_2"), 6, value=value, spent=True)


def test_the_table_marks_the_best_and_verdicts_and_calls_nothing_a_tie(folder, capsys):
    for kind in ("latex", "markdown", "csv"):
        assert main(["export", str(folder), "--table", kind]) == 0
    text = capsys.readouterr().out
    latex = text[: text.index("| optimizer")]
    for rule in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"B\_2",
        r"$\uparrow$",
        r"^{\ddagger}",
        r"^{\bullet\dagger}",
    ):
        assert rule in latex, rule
    tables = table.build(records.load(folder))
    for task_table in tables:
        column, rows = paper.cells(task_table), {row.optimizer: row for row in task_table.rows}
        leader = max(task_table.rows, key=lambda row: row.mean.mean).optimizer
        assert [name for name, cell in column.items() if cell.best] == [leader]
        assert {name for name, cell in column.items() if cell.may_be_best} == {"best", "close"}
        assert (column["behind"].verdict, column["best"].verdict) == ("worse", "better")
        assert column["adamw"].verdict == "baseline" and {cell.n for cell in column.values()} == {6}
        assert all(re.fullmatch(r"0\.\d{4}", cell.mean) for cell in column.values())
        assert {name: row.verdict for name, row in rows.items() if name != "adamw"} == {
            name: cell.verdict for name, cell in column.items() if name != "adamw"
        }, "the words are those of the report"
    assert latex.count(r"\mathbf") == 2 and "adamw (baseline)" in latex
    for exported in (latex.replace("$", ""), paper.markdown(tables)):
        assert "n = 6 seeds" in exported and "standard deviation" in exported and "underline" not in exported
    lines = list(csv.DictReader(io.StringIO(paper.csv(tables))))
    assert len(lines) == 8 and {line["verdict"] for line in lines} == {"baseline", "better", "worse"}
    assert {(line["n"], line["better_is"]) for line in lines} == {("6", "higher")} and "tied" not in lines[0]


def test_worse_than_the_baseline_and_perhaps_the_best_is_explained_where_it_happens(folder, capsys):
    """The tests of all pairs are more than those with the baseline."""
    tables = table.build(records.load(folder))
    told = "tests of all pairs are more than those with the baseline"
    assert told not in paper.markdown(tables) and not table.worse_and_tied(tables)
    row = next(row for row in tables[0].rows if row.optimizer == "behind")
    both = [replace(tables[0], rows=[*(r for r in tables[0].rows if r is not row), replace(row, place=(1, 4))])]
    assert told in paper.markdown(both) and told in paper.latex(both)
    show(both, Console(width=200))
    assert told in " ".join(capsys.readouterr().out.split())


def test_undecided_is_said_to_be_no_tie_and_equivalent_is_marked_as_what_it_is(tmp_path):
    make_study(tmp_path, ("adamw", "same"), ("A", "B"), 5)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "margin": {"A": 0.5}}))
    first, second = tables = table.build(records.load(tmp_path))
    assert paper.cells(first)["same"].verdict == "equivalent" and paper.cells(second)["same"].verdict == "undecided"
    said = " ".join(paper.legend(tables))
    assert "§ equivalent against adamw" in said and "No such mark: undecided, which is no tie." in said
    assert " §" in paper.markdown([first]) and "§" not in paper.markdown([second])
    assert "may be the best" in " ".join(paper.legend([second]))  # which is a mark, and says nothing of the verdict
    assert "No other mark: undecided, which is no tie (against adamw" in " ".join(paper.legend([second]))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_sets_the_table_with_its_note_below(folder, tmp_path):
    assert main(["export", str(folder), "--table", "latex", "--output", str(tmp_path / "table.tex")]) == 0
    around = r"""\documentclass{article}\usepackage{booktabs}\pdfcompresslevel=0\begin{document}
\begin{table}\centering\input{table}\caption{Both.}\end{table}\end{document}"""
    (tmp_path / "paper.tex").write_text(around)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout, "the note is wider than the column"
    drawn = re.sub(rb"\)-?[\d.]*\(", b"", (tmp_path / "paper.pdf").read_bytes())  # the kerns between letters
    assert b"standarddeviation" in drawn.replace(b" ", b"") or b"deviation" in drawn, "the note is no comment"


def test_a_failed_arm_has_a_note_and_is_never_the_best(tmp_path):
    make_study(tmp_path, ("adamw", "best"), seeds=4, value=value, failed={("best", 0)})
    (task_table,) = table.build(records.load(tmp_path))
    cell = paper.cells(task_table)["best"]
    assert cell.note == "1/4 runs failed" and not cell.best and "1/4 failed" in paper.latex([task_table])


def test_charts_have_the_width_that_is_asked_for(tmp_path, capsys):
    folder = make_study(tmp_path / "s", ("adamw", "best"), ("B_2",), 3, value=value)
    assert main(["export", str(folder), "--figure", "pdf", "--width", "icml column"]) == 0
    files = sorted((folder / "figures").glob("*.pdf"))
    assert {"b-2-result.pdf", "b-2-train-loss.pdf"} <= {file.name for file in files}
    for file in files:
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", file.read_bytes())
        assert box and float(box[1]) == pytest.approx(3.25 * 72, abs=0.5)
        assert b"CreationDate" not in file.read_bytes(), "no clock: the same study gives the same bytes"


def test_all_of_a_chart_lies_within_its_width_and_its_legend_covers_no_curve(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def saved(figure: Figure, *_: object, **__: object) -> None:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        parts = [axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels()]
        legend = axes.get_legend()
        for part in [*(part for part in parts if part.get_text()), *([legend] if legend else [])]:
            box = part.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, part
        if legend and len(legend.get_texts()) > figure_texts.FEW:
            assert legend.get_window_extent().y0 >= axes.get_window_extent().y1
            legends.append(legend)

    legends: list[object] = []
    monkeypatch.setattr(Figure, "savefig", saved)
    names = ("adamw", *(f"an optimizer of a long name {i}" for i in range(6)))
    folder = make_study(tmp_path / "s", names)
    results = records.load(folder)
    figures.write_all(results, table.build(results), tmp_path / "out", width=3.25, font=8)
    assert legends


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "say what to export"),
        (["--table", "latex", "--width", "3"], "--width belongs to --figure"),
        (["--figure", "pdf", "--width", "wide"], "icml column"),
        (["--figure", "pdf", "--width", "icml colum"], "(did you mean icml column"),
        (["--figure", "pdf", "--font-size", "90"], "points from 3 to 40"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, options, words):
    assert main(["export", str(folder), *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["plan.json", "study.yaml", "runs/{}/record.json", "runs/{}/spec.json", "study-1.yaml"]
)
def test_a_table_takes_the_place_of_nothing_that_a_study_is_made_of(folder, capsys, name):
    file = folder / name.format(min(path.name for path in (folder / "runs").iterdir()))
    file.touch()
    before = file.read_bytes()
    assert main(["export", str(folder), "--table", "csv", "--output", str(file)]) == 2
    assert "choose another --output" in capsys.readouterr().err and file.read_bytes() == before


def test_every_optimizer_can_be_cited():
    for name in hf_optim.list_optimizers():
        text = entry(name)
        assert re.match(r"@\w+\{[a-z0-9]+,\n  title = \{.+\},\n", text) and text.count("{") == text.count("}")
    assert "author = {Kingma, Diederik P. and Ba, Jimmy}" in entry("adam") and "year = {2015}" in entry("adam")
    assert "{nesterov1983method," in entry("nesterov"), "no article, and no word that every paper has"
    assert "Reddi" in entry("amsgrad") and entry("tlr_sgd") == entry("tlr")


def test_citing_nothing_cites_this_package(tmp_path, capsys):
    from pathlib import Path

    assert main(["cite"]) == 0
    own = capsys.readouterr().out
    assert f"version = {{{hf_optim.__version__}}}" in own and "author = {{" in own and "year = {2" in own
    assert f"version: {hf_optim.__version__}" in (Path(__file__).parent.parent / "CITATION.cff").read_text()
    (tmp_path / "mine.py").write_text("import torch\nclass Mine(torch.optim.SGD):\n    paper = 'Mine {2026}'\n")
    assert main(["cite", f"{tmp_path}/mine.py:Mine"]) == 0 and "Mine" in capsys.readouterr().out
    assert main(["cite", "torch.optim:SGD"]) == 2
    assert 'names no paper: give its class paper = "Title (Authors 2026)", or cited = ("' in capsys.readouterr().err
    assert main(["cite", "adamv"]) == 2 and "adam" in capsys.readouterr().err


def test_a_table_for_readers_has_names_in_place_of_import_paths_unless_they_could_be_confused(tmp_path, capsys):
    labels = ("adamw", "mine.py:Mine", "tlr(mine.py:Mine)", "torch.optim:AdamW")
    make_study(tmp_path, labels, seeds=3)
    plan = json.loads((tmp_path / "plan.json").read_text())
    for optimizer in plan["optimizers"]:
        if optimizer["label"].startswith("tlr("):
            optimizer["spec"] = {"name": "tlr", "base": "mine.py:Mine"}
    assert naming.shown(SimpleNamespace(optimizers=plan["optimizers"])) == {
        "adamw": "adamw",
        "mine.py:Mine": "Mine",
        "tlr(mine.py:Mine)": "tlr(Mine)",
        "torch.optim:AdamW": "torch.optim:AdamW",  # beside adamw
    }
    for form in ("latex", "markdown", "csv"):
        assert main(["export", str(tmp_path), "--table", form]) == 0
        first = [line.split(" &")[0].strip("| ").split(" |")[0] for line in capsys.readouterr().out.splitlines()]
        assert any(cell.startswith("Mine") for cell in first) and "torch.optim:AdamW" in "".join(first)
