"""The conformance suite: each check turns red for the optimizer that breaks its rule, and for nothing else."""

from __future__ import annotations

import importlib.util
import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from broken_optimizers import BROKEN

import hf_optim
import hf_optim.check
from hf_optim.check import launch, show, world
from hf_optim.check.candidate import Candidate, expand
from hf_optim.check.outcome import FAIL, NOT, PASS, UNMADE, Report, Verdict, judge
from hf_optim.commands import check as cli
from hf_optim.errors import UserError

ROOT = Path(__file__).parent.parent
CHECKS = hf_optim.check.registered()
HONEST, FORGETFUL, DROPS = (f"broken_optimizers:{n}" for n in ("Honest", "ForgetfulLookahead", "DropsItsMomentum"))
COARSE, COARSE_LOCAL = (f"coarse_optimizers:{n}" for n in ("RoundsInside", "RoundsInsideLocally"))
#: one of each family, under every check
OURS = ("adamw_agr", "smaran", "sls", "tlr_sgdm")
MOMENTUM = {"name": "torch.optim:SGD", "lr": 0.05, "momentum": 0.9}


def path(check: str) -> str:
    return f"broken_optimizers:{BROKEN[check].__name__}"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    """Every broken optimizer under every check, with one pair of processes, beside a `torch.py` of others."""
    names = [HONEST, FORGETFUL, DROPS, COARSE, COARSE_LOCAL, *map(path, BROKEN), *OURS]
    here = tmp_path_factory.mktemp("theirs")
    (here / "torch.py").write_text("raise SystemExit('this is not torch')")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        return hf_optim.check.run(names, references={path("reference"): MOMENTUM, HONEST: MOMENTUM})


def red(report: Report, name: str) -> dict[str, str]:
    return {c.check: c.why for c in report.failed if c.name == name}


def test_every_check_has_its_broken_optimizer():
    assert set(BROKEN) == set(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_turns_red_for_what_breaks_it_alone(report, check):
    failed = red(report, path(check))
    assert set(failed) == {check}, failed
    assert len(failed[check]) > 15  # it says what it saw


def test_an_honest_optimizer_passes(report):
    assert red(report, HONEST) == {}
    assert {c.check for c in report.ordered() if c.name == HONEST and c.status == NOT} == {"execution", "compile"}


def test_a_wrapper_that_forgets_what_it_wraps_is_caught_and_explained(report):
    failed = red(report, FORGETFUL)
    assert "parameters differ" in failed["resume"] and "accelerate" in failed


def test_a_rule_that_drops_its_momentum_is_caught_and_explained(report):
    failed = red(report, DROPS)
    assert "one step after resuming: parameters differ" in failed["resume"]
    assert "after load_state" in failed["accelerate"]


def test_a_rule_that_rounds_inside_is_allowed_its_rounding_and_no_more(report):
    assert red(report, COARSE) == {}
    note = report.cells[COARSE, "fsdp"].why
    assert "noise of one rounding of its gradients (bfloat16) and parameters (float64)" in note, note
    failed = red(report, COARSE_LOCAL)
    assert set(failed) == {"fsdp"} and "bfloat16" in failed["fsdp"], failed


def test_where_rounding_decides_nothing_is_said():
    said = hf_optim.check.run("soap", checks=["accumulation"]).cells["soap", "accumulation"]
    assert said.status == NOT and said.why.startswith("chaotic under rounding"), said


def test_every_cell_that_is_no_pass_says_why(report):
    assert len(report.cells) == len(report.names) * len(report.checks)
    assert all(c.why for c in report.ordered() if c.status != PASS)


# --- ours ------------------------------------------------------------------------------------------------------------

#: cells that are red, and why nothing is done about it
KNOWN = {
    ("lion", "nonfinite"): "the sign of NaN is 0 in torch: as in the published code, the weight stays and m is lost",
    ("cautious_lion", "nonfinite"): "as Lion",
    ("signum", "nonfinite"): "as Lion: a sign",
    ("adopt", "nonfinite"): "its clip bounds an infinite update, as in the paper: the weight moves by the bound",
    ("prodigy", "bf16"): "its first steps are of the size d0 = 1e-6, and d only grows when weights move",
}


def test_ours_pass_every_check(builder):
    """As the page's script saw them: the page is of this very code (`test_the_page_is_up_to_date`)."""
    ours = Report.from_dict(json.loads(builder.DATA.read_text())["tables"]["This library"])
    one_of_each_class = {hf_optim.info(name).cls: name for name in hf_optim.list_optimizers()}
    wrong = {(c.name, c.check): c.why for c in ours.failed if c.name in one_of_each_class.values()}
    assert set(wrong) == set(KNOWN), wrong


@pytest.mark.parametrize("name", OURS)
def test_one_of_each_family_passes_everything(report, name):
    assert red(report, name) == {}
    assert {report.cells[name, c].status for c in ("reference", "resume", "ddp", "fsdp")} == {PASS}
    assert report.cells[name, "compile"].status == (NOT if name == "sls" else PASS)


# --- foreign classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "style"),
    [
        ("torch.optim:Adam", "mixed", "bare"),
        ("torch.optim:LBFGS", "mixed", "closure"),
        ("torch.optim:Muon", "matrices", "bare"),
        ("torch.optim:SparseAdam", "sparse", "bare"),
        ("smaran", "mixed", "loss"),
        ("sls", "mixed", "closure"),
        (FORGETFUL, "mixed", "bare"),
    ],
)
def test_how_an_optimizer_wants_to_be_stepped_is_found_out(name, kind, style):
    candidate = Candidate(name)
    assert (candidate.kind, candidate.style, candidate.trouble) == (kind, style, "")


def test_what_cannot_be_stepped_is_a_row_of_its_own_and_no_failure(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n\n\nclass Mine(torch.optim.SGD):\n    def step(self, closure=None):\n"
        "        raise RuntimeError('not today')\n"
    )
    report = hf_optim.check.run(f"{file}:Mine", fast=True)
    assert report.failed == [] and {c.status for c in report.ordered()} == {UNMADE}
    (why,) = report.unmade.values()
    assert "not today" in why and "cannot be stepped" in why
    page = show.page({"Mine": report}, CHECKS, ["gone"])
    assert (
        page.count("cannot be stepped: ") == 1 and f"**{show.UNMADE_TITLE}**" in page and "| `Mine` | ? | ? |" in page
    )
    assert "1 of them could not be made" in page and page.rstrip().endswith("not tried: gone.")
    assert cli.main([f"{file}:Mine", "--checks", "convex"]) == 3
    out = capsys.readouterr().out
    assert show.UNMADE_TITLE in out and "not today" in out


def test_what_an_author_says_stands_whole(tmp_path, capsys):
    """Said of a check and of what cannot be made: what to do stands at the end of a long line."""
    said = "the rule cannot go on, because " + "of this and of that, " * 40 + "so do this instead"
    for at, shown in ((0, UNMADE), (6, FAIL)):
        file = tmp_path / f"mine{at}.py"
        file.write_text(
            "import torch\nfrom hf_optim.errors import UserError\n\n\nclass Mine(torch.optim.SGD):\n    n = 0\n\n"
            "    def step(self, closure=None):\n        self.n += 1\n"
            f"        if self.n > {at}:\n            raise UserError({said!r})\n        return super().step(closure)\n"
        )
        report = hf_optim.check.run(f"{file}:Mine", checks=["convex"])
        (cell,) = report.ordered()
        assert cell.status == shown and cell.why.endswith("so do this instead"), cell
        cli.main([f"{file}:Mine", "--checks", "convex"])
        assert said in " ".join(capsys.readouterr().out.split())


def test_a_state_that_is_lost_unseen_is_told_how_to_be_shown(tmp_path):
    text = (ROOT / "hf_optim" / "optimizers" / "lion.py").read_text(encoding="utf-8")
    for name, line in (("lost", ""), ("shown", "        x.add_(m, alpha=0.0)\n")):
        (tmp_path / f"{name}.py").write_text(text.rstrip("\n") + f"\n{line}")
        report = hf_optim.check.run(f"{tmp_path / name}.py:Lion", checks=["nonfinite"])
        (cell,) = report.ordered()
        assert cell.status == (PASS if line else FAIL), cell
        assert line or "x.add_(m, alpha=0.0) with what it was taken of shows it" in cell.why


def test_an_operator_that_refuses_float64_only_when_sharded_is_judged_in_float32(monkeypatch):
    def sharded(candidate, dtype):
        raise RuntimeError(f"no sharding strategy for {dtype}")

    candidate = Candidate("sgd")
    monkeypatch.setattr(world, "_sharded", sharded)
    assert judge(CHECKS["fsdp"], candidate) == (
        FAIL,
        "RuntimeError: no sharding strategy for torch.float32 (test_check.py, sharded)",
    )
    narrow = {torch.float32: lambda *_: "equal", torch.float64: sharded}
    monkeypatch.setattr(world, "_sharded", lambda candidate, dtype: narrow[dtype](candidate, dtype))
    assert judge(CHECKS["fsdp"], candidate) == (PASS, "equal")


def test_a_torch_that_shards_on_no_cpu_says_nothing_of_an_optimizer(monkeypatch):
    monkeypatch.delattr(torch.cpu.Stream, "record_event")
    mark, why = judge(CHECKS["fsdp"], Candidate("sgd"))
    assert mark == NOT and "runs on no CPU" in why


def test_undeclared_classes_are_not_held_to_what_they_never_promised():
    report = hf_optim.check.run("torch.optim:Adam", checks=["bf16", "state_bytes", "compile", "host_sync"])
    assert report.failed == []
    assert "exp_avg" in report.cells["torch.optim:Adam", "bf16"].why
    assert "8 bytes" in report.cells["torch.optim:Adam", "state_bytes"].why


def test_a_reference_may_be_named():
    torchs = {"name": "torch.optim:AdamW", "lr": 0.001}
    report = hf_optim.check.run(["adamw", "adan"], checks=["reference"], references={"adamw": torchs, "adan": torchs})
    assert [c.name for c in report.failed] == ["adan"]


def test_a_reference_tells_rules_apart_that_differ_where_gradients_turn_or_shrink(capsys):
    references = {"cautious_adamw": "adamw", "amsgrad": "adam", "nadam": "adam"}
    report = hf_optim.check.run(list(references), checks=["reference"], references=references)
    assert [c.name for c in report.failed] == list(references)
    with pytest.raises(UserError, match="there is no file plain.py"):  # before minutes of checks
        cli.main(["smaran", "--reference", "plain.py:X"])


def test_what_two_processes_say_is_the_worse_verdict_or_the_crash():
    said = StringIO("noise\nSegmentation fault\n")
    complaint = (FAIL, "Connection closed by peer")
    assert launch._merged([(PASS, ""), (NOT, "no")]) == (NOT, "no")
    assert launch._broken([complaint], [None, -11], [StringIO(), said]) == (
        FAIL,
        "a process ended with code -11: Segmentation fault",
    )
    assert launch._broken([complaint], [3, None], [StringIO(), StringIO()]) == complaint
    assert "wait for different collectives" in launch._broken([], [None, None], [StringIO(), StringIO()])[1]


# --- names, errors, output -------------------------------------------------------------------------------------------


def test_wildcards():
    assert expand(["*_agr"]) == ["adamw_agr", "adan_agr", "sgd_agr"]
    assert {"torch.optim:SGD", "torch.optim:LBFGS"} < set(expand(["torch.optim:*"]))
    assert "torch.optim:Optimizer" not in expand(["torch.optim:*"])
    with pytest.raises(UserError, match="no optimizer matches"):
        expand(["torch.optim:No*"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--all"),
        (["smaran", "--all"], "not both"),
        (["smarann"], "smaran"),
        (["smaran", "--checks", "conv"], "convex"),
        (["smaran", "--hyper", "{lr: 1}"], "not JSON"),
        (["smaran", "--json", "/no/such/folder/x.json"], "no folder"),
        (["nowhere.py:Mine"], "no file"),
        (["torch.optim:NoSuch"], "NoSuch"),
    ],
)
def test_wrong_arguments_are_one_clear_line(arguments, text):
    with pytest.raises(UserError, match=text):
        cli.main(arguments)


def test_the_command(tmp_path, capsys):
    code = cli.main(
        [
            "smaran",
            "broken_optimizers:Climbs",
            "--checks",
            "convex,state_bytes",
            "--json",
            str(tmp_path / "r.json"),
            "--markdown",
            str(tmp_path / "r.md"),
        ]
    )
    out = capsys.readouterr().out
    assert code == 1
    assert "the loss went from" in out and CHECKS["convex"].breaking in out
    assert all(len(line) <= 100 for line in out.splitlines())
    data = json.loads((tmp_path / "r.json").read_text())
    assert Report.from_dict(data).to_dict() == data
    assert {(c["name"], c["check"]): c["status"] for c in data["cells"]} == {
        ("smaran", "convex"): PASS,
        ("smaran", "state_bytes"): PASS,
        ("broken_optimizers:Climbs", "convex"): FAIL,
        ("broken_optimizers:Climbs", "state_bytes"): PASS,
    }
    assert "| `Climbs` | ✗ | ✓ |" in (tmp_path / "r.md").read_text()
    assert cli.main(["smaran", "--checks", "convex"]) == 0
    assert "1 optimizer, 1 check: 1 passed, 0 failed" in capsys.readouterr().out


def test_the_list_of_checks(capsys):
    assert cli.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(id in out for id in CHECKS)


def test_wide_tables_are_split_at_the_terminals_width(capsys):
    from rich.console import Console

    ids = list(CHECKS)
    cells = {("smaran", id): Verdict("smaran", id, PASS) for id in ids}
    for width, blocks in ((100, 1), (50, 2)):
        show.terminal(Report(["smaran"], ids, cells), CHECKS, Console(width=width))
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("smaran") for line in lines) == blocks
        assert sum(line.count("✓") for line in lines) == len(ids)
        assert max(map(len, lines[:4])) <= width
        assert width == 50 or max(map(len, lines)) <= 80


def test_what_could_not_be_made_has_a_reason_and_no_table(capsys):
    from rich.console import Console

    cells = {("Mine", id): Verdict("Mine", id, UNMADE, "needs a licence") for id in CHECKS}
    show.terminal(Report(["Mine"], list(CHECKS), cells), CHECKS, Console(width=80))
    out = capsys.readouterr().out
    assert "needs a licence" in out and "convex" not in out and len(out.splitlines()) < 8


# --- the published page ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build_conformance", ROOT / "scripts" / "build_conformance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AGAIN = "run `python scripts/build_conformance.py`"


def test_the_page_is_up_to_date(builder):
    data = json.loads(builder.DATA.read_text())
    now = builder.fingerprints()
    stale = sorted(k for k in now if data["fingerprints"].get(k) != now[k])
    assert not stale, f"docs/conformance.md is out of date for {', '.join(stale)}: {AGAIN}"
    assert data["tables"]["This library"]["names"] == hf_optim.list_optimizers()
    reports = {title: Report.from_dict(table) for title, table in data["tables"].items()}
    assert all(r.checks == list(CHECKS) for r in reports.values()), AGAIN
    page = show.page(reports, CHECKS, data.get("missing", ()))
    assert builder.PAGE.read_text() == page, f"the page is not what the data say: {AGAIN}"
    assert len(reports["pytorch_optimizer"].names) >= 20 and len(reports["torch.optim"].names) >= 14


def test_a_changed_rule_is_noticed_and_a_changed_comment_is_not(builder, tmp_path):
    file = tmp_path / "rule.py"
    file.write_text('"""One."""\nx = 1  # a\n')
    first = builder.fingerprint(file)
    file.write_text('"""Two."""\n# b\nx = 1\n')
    assert builder.fingerprint(file) == first
    file.write_text("x = 2\n")
    assert builder.fingerprint(file) != first


def test_reference_trajectories_are_those_of_the_twins(builder, tmp_path, monkeypatch):
    before = json.loads(builder.REFERENCES.read_text())["trajectories"]
    monkeypatch.setattr(builder, "REFERENCES", tmp_path / "references.json")
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    builder.build_references()
    now = json.loads((tmp_path / "references.json").read_text())["trajectories"]
    assert set(now) == set(before), "run `python scripts/build_conformance.py --references`"
    for name, rows in now.items():
        for t, row in rows.items():
            for a, b in zip(row, before[name][t], strict=True):
                assert a == pytest.approx(b, rel=1e-9, abs=1e-12), name
