"""The scripts of scripts/situations: two of them here, the rest on the page that scripts/build_situations.py writes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")
SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "situations")]
import build_situations as builder  # noqa: E402
import worker  # noqa: E402
from table import KINDS, SITUATIONS  # noqa: E402


@pytest.mark.parametrize(("name", "kind"), [("glue", "line search"), ("gradient_accumulation", "loss-aware")])
def test_a_script_trains_as_plain_torch_does(tmp_path, monkeypatch, name, kind):
    script = SITUATIONS[name]
    worker.first(script, kind, tmp_path)
    assert builder.compared(tmp_path, "whole", "plain")["status"] == "equal"
    if script.checkpoint:
        assert builder.compared(tmp_path, "straight", "plain")["status"] == "different"  # one with dropout, one without
        assert builder.logged(tmp_path, kind) == ""
    start = builder.weights(tmp_path / "start")
    monkeypatch.setattr(builder, "weights", lambda folder: start)
    assert "moved no weight" in builder.compared(tmp_path, "whole", "plain")["why"]


def test_one_line_brings_the_rule():
    for name, script in SITUATIONS.items():
        text = (SCRIPTS / "situations" / f"{name}.py").read_text(encoding="utf-8")
        lines = re.findall(r"hf_optim\.\w+", text)
        assert lines == (["hf_optim.attach"] if script.door == "attach" else ["hf_optim.create", "hf_optim.Session"])


def test_the_page_is_whole():
    results = json.loads(builder.RESULTS.read_text(encoding="utf-8"))
    again = "run python scripts/build_situations.py"
    assert list(results) == [name for name in SITUATIONS if name in results] and results, again
    for name, script in ((name, SITUATIONS[name]) for name in results):  # the page says of the others: not run
        assert list(results[name]) == list(KINDS), again
        for verdicts in results[name].values():
            assert set(verdicts) == {"whole", "two"} | ({"resumed"} if script.checkpoint else set()), again
            assert {v["status"] for v in verdicts.values()} <= {"equal", "refused", "not run"}, (name, verdicts)
    assert builder.PAGE.read_text(encoding="utf-8") == builder.page(results), again
