"""Surfaces of two variables: the functions, the trajectories, what is drawn and what is refused."""

from __future__ import annotations

import math
import re
import struct

import pytest
import torch

import hf_optim
from hf_optim.commands import landscape
from hf_optim.commands import main as cli
from hf_optim.errors import UserError
from hf_optim.toys import trajectory
from hf_optim.toys.surfaces import SURFACES
from hf_optim.toys.trajectory import follow, tuned

START = {name: surface.start for name, surface in SURFACES.items()}


@pytest.mark.parametrize("name", SURFACES)
def test_the_surface_is_what_it_says(name):
    surface = SURFACES[name]
    for x, y in surface.minima:
        point = torch.tensor([x, y], dtype=torch.float64, requires_grad=True)
        f = surface.f(point[0], point[1])
        (gradient,) = torch.autograd.grad(f, point)
        assert f.item() < 1e-18 and gradient.abs().max() < 1e-8
    low_x, high_x, low_y, high_y = surface.box
    for x, y in (*surface.minima, surface.start):
        assert low_x < x < high_x and low_y < y < high_y
    assert bool(surface.minima) == (surface.rate is None)


def test_known_values():
    """Beale at the start of SMARAN's Figure 1e, Rosenbrock and Himmelblau at 0, Rastrigin between its minima."""

    def f(name, x, y):
        return SURFACES[name].f(*torch.tensor([x, y], dtype=torch.float64)).item()

    assert START["beale"] == (1.0, 1.5)
    assert f("beale", 1, 1.5) == pytest.approx(2.0**2 + 3.5**2 + 5.0**2)
    assert f("rosenbrock", 0, 0) == 1 and f("himmelblau", 0, 0) == 170 and f("quadratic", 2, 1) == 14.5
    assert f("rastrigin", 0.5, 0.5) == pytest.approx(40.5) and f("saddle", 1, 2) == -3


def test_a_trajectory_is_the_optimizers_own():
    x, points = [-4.0, 1.5], [(-4.0, 1.5)]
    for _ in range(5):
        x = [x[0] - 0.03 * x[0], x[1] - 0.03 * 25 * x[1]]
        points.append(tuple(x))
    path = follow(SURFACES["quadratic"], {"name": "sgd", "lr": 0.03}, 5, START["quadratic"])
    for a, b in zip(path.points, points, strict=True):
        assert a == pytest.approx(b, rel=1e-12)
    assert path.values == pytest.approx([(a**2 + 25 * b**2) / 2 for a, b in points]) and path.sound and not path.note


@pytest.mark.parametrize(
    "text",
    [
        "smaran",
        "amvt",
        "tlr(sgd)",
        "lookahead(adam)",
        "tlr_adam",
        "sls",
        "ponos",
        "sps",
        "l4_mom",
        "decgd",
        "prodigy",
        "torch.optim:NAdam",
        "{name: sgd, momentum: 0.9}",
        '{"name": "adan_agr", "lr": 0.1}',
        "lookahead(tlr(sgd))",
        "{name: lion, grad_transform: agr}",
        "hd_sgd",
    ],
)
def test_any_optimizer_descends(text):
    spec = trajectory.parse(text)
    surface = SURFACES["beale"]
    path = (tuned if trajectory.takes_rate(spec) else follow)(surface, spec, 40, surface.start)
    assert path.sound and path.values[-1] < 0.6 * path.values[0]
    assert len(path.points) == len(path.values) == 41


def test_smarans_figure():
    """Figure 1e: on Beale in 100 steps SMARAN arrives; SGD and Adam at their best rates are not yet as low."""
    paths = {name: tuned(SURFACES["beale"], {"name": name}, 100, START["beale"]) for name in ("smaran", "adam", "sgd")}
    rows = {name: path.row(SURFACES["beale"]) for name, path in paths.items()}
    assert rows["smaran"]["steps"] is not None and rows["smaran"]["distance"] < 0.05
    assert rows["smaran"]["f"] < min(rows["adam"]["f"], rows["sgd"]["f"])


def test_agr_reaches_the_vector_and_says_so():
    spec = trajectory.prepared({"name": "lookahead", "base": {"name": "adamw_agr"}})
    assert spec["base"]["agr_scope"] == "all"
    assert trajectory.prepared({"name": "sgd_agr", "lr": 1.0, "agr_scope": "matrix"})["agr_scope"] == "matrix"
    path = follow(SURFACES["beale"], {"name": "adamw_agr", "lr": 0.1}, 3, START["beale"])
    plain = follow(SURFACES["beale"], {"name": "adamw", "lr": 0.1}, 3, START["beale"])
    assert path.points[-1] != plain.points[-1]
    assert any(note.endswith(': agr_scope="all"') for note in landscape.remarks(SURFACES["beale"], [path], []))
    assert trajectory.on_vectors(spec) == ['agr_scope="all"']
    assert trajectory.on_vectors(trajectory.prepared({"name": "sgd_agr", "agr_scope": "matrix"})) == []
    assert trajectory.on_vectors(trajectory.prepared({"name": "lion", "grad_transform": "agr"})) == ['scope="all"']


def test_definitions_of_our_own_are_named():
    path = follow(SURFACES["beale"], {"name": "amvt_modules", "snr": True}, 3, START["beale"])
    notes = landscape.remarks(SURFACES["beale"], [path], [])
    assert any("our definition" in note and "noise" in note for note in notes)


def test_a_negative_loss_is_one_line_for_the_rule_that_refuses_it():
    path = follow(SURFACES["saddle"], {"name": "smaran", "lr": 0.03}, 200, (-0.5, 0.2))
    assert not path.sound and re.fullmatch(r"refuses step \d+: the loss -\S+ is below 0, .*", path.note)
    away = follow(SURFACES["saddle"], {"name": "sgd", "lr": 0.03}, 200, (-0.5, 0.2))
    assert away.sound and "left the saddle" in away.note and away.row(SURFACES["saddle"])["distance"] is None


ODD = """
import torch
class Mine(torch.optim.Optimizer):
    def __init__(self, params, rate=0.1):
        super().__init__(params, {{{group}}})
    def step(self, closure=None):
        {body}
"""


@pytest.mark.parametrize(
    ("body", "why"),
    [("raise RuntimeError('boom')", "boom"), ("self.param_groups[0]['params'][0].data = torch.zeros(3)", "ValueError")],
)
def test_a_step_of_somebodys_own_that_fails_is_a_line_and_takes_no_other_with_it(tmp_path, capsys, body, why):
    (tmp_path / "own.py").write_text(ODD.format(group="", body=body))
    mine = f"{tmp_path / 'own.py'}:Mine"
    assert cli.main(["landscape", "beale", "--steps", "2", "--no-plots", "--optimizers", mine, "sgd"]) == 0
    assert re.search(f"fails at step 1: .*{why}", said := capsys.readouterr().out) and "\n  sgd" in said


@pytest.mark.parametrize(
    ("group", "body", "why"),
    [
        ("", "return closure()", "its groups have no lr"),
        ("'lr': 1.0", "raise RuntimeError('boom')", "fails at step 1: .*boom"),
        ("'lr': 1.0", "return 'x'", "fails at step 1"),
        ("'lr': 1.0", "self.param_groups[0]['params'][0].data = torch.zeros(3); return 1.0", "fails at step 2"),
        ("'lr': 1.0", "self.param_groups.append({}); return 1.0", "fails at step 2"),
        ("'lr': 1.0", "return closure()\n    everywhere = 5", "exponent of T"),
    ],
)
def test_an_odd_class_is_measured_as_far_as_it_goes(tmp_path, capsys, group, body, why):
    (tmp_path / "own.py").write_text(ODD.format(group=group, body=body))
    mine = f"{tmp_path / 'own.py'}:Mine"
    cli.main(["convergence", "--problem", "two-pulls", "--steps", "8", "--seeds", "1", "--optimizer", mine])
    out, err = capsys.readouterr()
    assert re.search(why, out + err)


def test_divergence_stops():
    path = follow(SURFACES["rosenbrock"], {"name": "sgd", "lr": 1.0}, 100, START["rosenbrock"])
    assert not path.sound and path.note.startswith("diverged at step") and all(map(math.isfinite, path.values))
    assert tuned(SURFACES["rosenbrock"], {"name": "sgd"}, 30, START["rosenbrock"]).sound


def test_rates_go_to_the_innermost_base():
    for text, given, wanted in (
        ("sgd", True, 0.5),
        ("tlr(sgd)", True, 0.5),
        ("tlr_sgd", True, 0.5),
        ("hd_sgd", True, 0.5),
        ("sps", False, None),
        ("prodigy", False, 1.0),
        ("{name: sgd, lr: 1e-3}", False, 1e-3),
        ("{name: tlr, base: {name: sgd, lr: 0.2}}", False, 0.2),
    ):
        spec = trajectory.parse(text)
        assert trajectory.takes_rate(spec) is given, text
        assert trajectory.rate_of(trajectory.with_rate(spec, 0.5) if given else spec) == wanted, text
    assert trajectory.label_of(trajectory.parse("lookahead(tlr(sgd))")) == "lookahead(tlr(sgd))"
    assert trajectory.label_of(trajectory.parse("{name: sgd, momentum: 0.9}")) == "sgd momentum=0.9"


def test_a_class_that_takes_nothing_is_one_line(tmp_path):
    (file := tmp_path / "mine.py").write_text(
        "import torch\nclass M(torch.optim.Optimizer):\n    def __init__():\n        pass\n"
    )
    with pytest.raises(UserError, match="M is not a torch.optim.Optimizer class, nor"):
        trajectory.takes_rate({"name": f"{file}:M"})


def test_the_command(tmp_path, capsys):
    out = tmp_path / "plots"
    command = [
        "landscape",
        "beale",
        "saddle",
        "--optimizers",
        "smaran",
        "adam",
        "tlr(sgd)",
        "adamw_agr",
        "--steps",
        "30",
        "--lr",
        "adam=0.2",
        "tlr(sgd)=0.01",
        "--output",
        str(out),
    ]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "steps to 0.001" in text and "lr of smaran, adamw_agr: the one of 1, 0.3" in text and "agr_scope" in text
    assert re.search(r"^ *adam +0\.2 ", text, re.MULTILINE) and re.search(r"^ *tlr\(sgd\) +0\.01 ", text, re.MULTILINE)
    for name in ("beale", "saddle"):
        head = (out / f"{name}.png").read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n" and min(struct.unpack(">II", head[16:])) > 500
        page = (out / f"{name}.html").read_text(encoding="utf-8")
        assert not re.search(r"(src|href)\s*=|https?://|url\((?!#)", page), "the page must need no network"
        for label in ("smaran", "adam", "tlr(sgd)", "adamw_agr"):
            assert label in page
        assert page.count("<polyline") == 3 * 4  # map, curve and swatch of each
        assert "nan" not in page
    assert sorted(f.name for f in out.iterdir()) == [
        "beale.html",
        "beale.png",
        "landscape.csv",
        "saddle.html",
        "saddle.png",
    ]


def test_a_label_is_text_not_markup(tmp_path):
    from hf_optim.toys import trajectory_plot as landscape_plot

    path = follow(SURFACES["quadratic"], {"name": "sgd", "lr": 0.01}, 3, START["quadratic"], "<b>&")
    page = landscape_plot.page("quadratic", SURFACES["quadratic"], [path], ["<i>"])
    assert "<b>&<" not in page and "&lt;b&gt;&amp;" in page and "&lt;i&gt;" in page


def test_tables_alone_leave_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["landscape", "quadratic", "--optimizers", "sgd", "--steps", "5", "--no-plots"]) == 0
    assert "sgd" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["beel"], "unknown surface 'beel' (did you mean beale?): choose from beale"),
        (["beale", "--optimizers", "smaram"], "did you mean smaran"),
        (["beale", "--optimizers", "{name: sgd, momentun: 0.9}"], "did you mean momentum"),
        (["beale", "--optimizers", "{momentum: 0.9}"], "needs a name"),
        (["beale", "--optimizers", "{a"], "neither JSON nor YAML"),
        (["beale", "--optimizers", "tlr(no)"], "optimizer 'no'"),
        (["beale", "--optimizers", "tlr"], "wraps another optimizer"),
        (["beale", "--lr", "sgdm=0.1"], "--lr sgdm=0.1"),
        (["beale", "--lr", "sgd=fast"], "give OPTIMIZER=RATE"),
        (["beale", "--steps", "0"], "at least 1"),
        (["beale", "--steps", "many"], "--steps"),
        ([], "SURFACE"),
        (["beale", "--optimizers", "none.py:X"], "there is no file"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["landscape", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x: cannot be written \(.*choose another --output"):
        landscape.main(["quadratic", "--optimizers", "sgd", "--steps", "2", "--output", str(tmp_path / "file" / "x")])


def test_without_matplotlib_the_line_names_the_extra_and_the_way_without(tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["landscape", "quadratic", "--optimizers", "sgd", "--output", str(tmp_path / "out")]) == 2
    said = "error: a plot (--no-plots draws none) needs matplotlib: pip install 'hf-optim[study]'\n"
    assert capsys.readouterr().err == said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "start"),
    [*((name, place) for name, s in SURFACES.items() for place in s.minima[:1]), ("quadratic", (1e-7, 0)),
     *((name, (1e6, -1e6)) for name in SURFACES)],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_a_start_at_a_minimum_or_far_away_is_drawn(name, start, tmp_path, capsys):
    """A range of values without any in it was a traceback, and with it went the charts of all surfaces."""
    told = ["--start", *map(str, start), "--optimizers", "sgd", "--lr", "sgd=1e-4", "--steps", "3"]
    assert cli.main(["landscape", name, *told, "--output", str(tmp_path)]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".html", ".png"}


@pytest.mark.parametrize("x", ["nan", "inf", "1e7"])
def test_a_start_that_is_nowhere_is_refused(x, tmp_path, capsys):
    assert cli.main(["landscape", "saddle", "--start", "0", x, "--output", str(tmp_path)]) == 2
    assert "--start: numbers from -1e+06 to 1e+06" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["1e-300", "1e130", "1e200"])
@pytest.mark.filterwarnings("error")
def test_a_rate_that_leaves_nothing_to_draw_leaves_a_chart(rate, tmp_path, capsys):
    told = ["--problem", "two-pulls", "--steps", "16", "--seeds", "2", "--lr", rate, "--optimizer", "sgd"]
    assert cli.main(["convergence", *told, "--output", str(tmp_path)]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".svg", ".png"}


def test_the_command_starts_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; from hf_optim.commands.main import main\n"
        "try: main(['landscape', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]") and "beale" in out
    assert hf_optim.list_optimizers("smaran") == ["smaran"]
