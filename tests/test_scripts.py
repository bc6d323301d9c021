"""Every script says what it does when it is asked, and does nothing."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hf_optim.experiment import training

SCRIPTS = Path(__file__).parent.parent / "scripts"
STARTED = [p for p in sorted(SCRIPTS.glob("*.py")) if '__name__ == "__main__"' in p.read_text(encoding="utf-8")]
DEEDS = {
    pathlib.Path: ("write_text", "write_bytes", "unlink", "mkdir", "rmdir"),
    subprocess: ("run", "call", "check_call", "check_output"),
    os: ("system", "remove", "unlink"),
}


def _refused_to_scripts(deed):
    def guarded(*args, **kwargs):
        assert SCRIPTS not in Path(sys._getframe(1).f_code.co_filename).parents, f"--help did something: {args}"
        return deed(*args, **kwargs)

    return guarded


@pytest.mark.parametrize("script", STARTED, ids=lambda path: path.stem)
def test_help_is_all_that_happens(script, monkeypatch, capsys):
    for owner, names in DEEDS.items():
        for name in names:
            monkeypatch.setattr(owner, name, _refused_to_scripts(getattr(owner, name)))
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    assert not end.value.code and out.startswith("usage") and len(out.splitlines()) > 3


def test_the_benchmark_can_make_every_rule_that_it_offers(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    benchmark = runpy.run_path(str(SCRIPTS / "benchmark_step.py"))
    for name in benchmark["rules"]():
        assert benchmark["step"](benchmark["ours"](name, [(4, 4), (4,)])) > 0, name
    assert {"lion", "tlr", "lookahead", "hdk", "smaran"} <= set(benchmark["rules"]())


def test_the_benchmark_counts_every_tensor_of_a_rule_that_treats_them_differently(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    benchmark = runpy.run_path(str(SCRIPTS / "benchmark_step.py"))
    opt = benchmark["ours"]("adamw_agr", [(64, 64), (64,)])  # vectors are stepped without AGR
    benchmark["step"](opt)
    moved, held = benchmark["traffic"](lambda: benchmark["step"](opt))
    n, vector = 64 * 64 + 64, 64
    assert moved == 4 * (7 * n + n - vector)  # x, m, v both ways and g; g once more for its sum, of matrices alone
    assert 4 * 4 * n <= held <= 4 * 5 * n  # x, m, v, g; what both passes read may be counted twice


def test_the_benchmark_goes_on_only_on_the_same_kind_of_machine(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    benchmark = runpy.run_path(str(SCRIPTS / "benchmark_step.py"))
    for there in (benchmark["machine"](), {**benchmark["machine"](), "vectors": "AVX9"}):
        (tmp_path / "steps.json").write_text(json.dumps({"machine": there, "rows": [], "first steps": []}))
        if there == benchmark["machine"]():
            assert benchmark["Measured"](tmp_path).results["machine"] == there
        else:
            with pytest.raises(SystemExit, match="measured on another machine .*AVX9.*name a new folder"):
                benchmark["Measured"](tmp_path)


def test_a_disk_that_is_full_is_one_line_of_train_too(tmp_path, monkeypatch, capsys):
    def fills(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training, "train", fills)
    asked = ["--task", "vision", "--model", "mlp", "--size", "smoke", "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", *asked])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / "train.py"), run_name="__main__")
    assert end.value.code == 2 and capsys.readouterr().err == "error: output: No space left on device\n"
