"""A run that was killed inside a step and started again is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import ranks
from hub_killed import CASES

import hf_optim

WORKER = Path(__file__).with_name("hub_killed.py")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    said = ranks.run(WORKER, folder)
    return json.loads((folder / "report.json").read_text()), said


@pytest.mark.parametrize("case", CASES)
def test_killed_in_mid_step_and_resumed(report, case):
    cases, said = report
    assert cases[case]["signal"] == signal.SIGKILL
    assert cases[case]["found"] == dict.fromkeys(("weights", "state", "groups", "log", "moved"), True), said[-3000:]


def test_every_name_is_a_case():
    assert set(hf_optim.list_optimizers()) <= set(CASES)
