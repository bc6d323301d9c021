"""Charts and figures of a stranger's study: labels that are programs or too long, numbers without end or absent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.dom import minidom

import matplotlib
import pytest
from attack_parts import command
from matplotlib import pyplot
from matplotlib.text import Text
from study_fakes import make_study, replan

from hf_optim.study import api
from hf_optim.study.report import figure_texts, figures

READS = r"\input{/etc/passwd}"


def test_a_label_is_no_program_of_latex(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`text.usetex: True` stands in the matplotlibrc of many who write papers."""
    study = make_study(tmp_path / "study", ("adamw", READS), tasks=(READS,), seeds=2)
    with matplotlib.rc_context({"text.usetex": True}):
        for chart in ("result", "difference", "train_loss"):
            axes = pyplot.subplots()[1]
            api.load(study).plot(chart, axes=axes)
            shown = [text for text in axes.findobj(Text) if "input" in text.get_text() or "accuracy" in text.get_text()]
            assert shown and not any(text.get_usetex() for text in shown)
            pyplot.close(axes.figure)
        assert command(capsys, "export", study, "--figure", "svg")[0] == 0
    assert READS in (study / "figures" / "input-etc-passwd-result.svg").read_text()


def test_a_label_that_begins_with_an_underscore_is_in_the_legend(tmp_path: Path) -> None:
    """matplotlib leaves such names out: a curve without a name."""
    axes = api.load(make_study(tmp_path / "study", ("adamw", "_mine"), seeds=2)).plot("train_loss")
    assert {text.get_text().strip() for text in axes.get_legend().get_texts()} == {"adamw", "_mine"}


def test_a_label_without_end_leaves_room_for_the_chart(tmp_path: Path) -> None:
    labels = ("adamw", "y" * 199 + "1", "y" * 199 + "2")
    axes = api.load(make_study(tmp_path / "study", labels, seeds=2)).plot()
    shown = {text.get_text() for text in axes.get_yticklabels()}
    assert len(shown) == 3 and max(map(len, shown)) <= 120


@pytest.mark.parametrize("rows", [10, 300, 5000])
def test_a_chart_of_any_height_has_fewer_dots_than_can_be_drawn(rows: int) -> None:
    height = figures._height(rows, 40)
    assert figures._dpi(5.5, height) * height < 2**16


def test_a_chart_without_a_curve_has_no_legend(recwarn: pytest.WarningsRecorder) -> None:
    """matplotlib said so on the terminal."""
    axes = pyplot.subplots()[1]
    figure_texts.legend(axes)
    assert axes.get_legend() is None and not recwarn.list
    pyplot.close(axes.figure)


def test_a_chart_holds_no_letter_that_xml_may_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No program opened it."""
    study = make_study(tmp_path / "study", seeds=2)
    named = {"name": "test_\uffff\ufffe", "greater_is_better": True}
    replan(study, lambda plan: [task.update(primary=named) for task in plan["tasks"]])
    assert command(capsys, "export", study, "--figure", "svg")[0] == 0
    for file in (study / "figures").glob("*.svg"):
        minidom.parse(str(file))


def test_a_number_beyond_all_others_has_few_digits(tmp_path: Path, capsys: Any) -> None:
    """1e148 stood with all of its 149 in every sentence and table of the report."""
    far = {"sgd": 1e148, "lion": 2e148}
    study = make_study(tmp_path / "study", ("adamw", *far), seeds=4, value=lambda o, s: far.get(o, 1) * (1 + s / 10))
    assert command(capsys, "report", study)[0] == 0
    for file in (*study.glob("*.md"), *study.rglob("*.html")):
        assert not re.search(r"\d{30}", file.read_text()), file


@pytest.mark.parametrize("gone", ["forward_passes", "backward_passes"])
def test_what_a_step_costs_is_told_where_both_passes_are_known(gone: str, tmp_path: Path, capsys: Any) -> None:
    """A record that told of one kind alone made a verdict of "nan backward passes"."""
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        passes = {"forward_passes": 80 if record["spec"]["optimizer"]["name"] == "sgd" else 40, "backward_passes": 40}
        record["time"] |= passes
        del record["time"][gone]
        file.write_text(json.dumps(record))
    code, out, _ = command(capsys, "report", study)
    assert code == 0 and "nan" not in out and "a step costs" not in out


@pytest.mark.parametrize(
    "words",
    [("export", "--table", "csv"), ("export", "--figure", "svg"), ("results", "--by", "task")],
    ids=lambda words: words[-1],
)
def test_a_table_for_a_paper_says_which_run_it_lacks(words: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    """A record that nobody could read was left out of them without a word."""
    study = make_study(tmp_path / "study", seeds=3)
    record, other, *_ = sorted(study.glob("runs/*/record.json"))
    assert command(capsys, words[0], study, *words[1:])[2] == ""
    record.write_text(record.read_text()[:200])
    code, out, said = command(capsys, words[0], study, *words[1:])
    assert code == 0 and out and said.startswith("unreadable: ") and f"runs/{record.parent.name}/record.json" in said
    other.write_text("{")
    assert "; and 1 more, which" in command(capsys, words[0], study, *words[1:])[2]
