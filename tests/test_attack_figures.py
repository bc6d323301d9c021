"""Charts for a paper of a stranger's study: labels that are programs, too long, left out, or too many."""

from __future__ import annotations

from pathlib import Path
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
