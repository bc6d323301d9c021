"""The workflows of .github say what they may do and run what there is; whether a runner likes them, a push shows."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(file.read_text())["jobs"]


def commands(file: Path) -> str:
    return "\n".join(step.get("run", "") for job in jobs(file).values() for step in job.get("steps", ()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_workflow_may_read_and_no_more(file: Path) -> None:
    assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in jobs(file).items() if "permissions" in job}
    assert more == ({"publish": {"id-token": "write"}} if file.stem == "release" else {})
    for name, job in jobs(file).items():
        assert "uses" in job or job["timeout-minutes"] <= 90, name
        for step in job.get("steps", ()):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", ""), f"{name}: text from elsewhere becomes a command: {step['run']}"


def test_actions_are_commits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["pin_actions.py", "--check"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "scripts" / "pin_actions.py"), run_name="__main__")
    assert end.value.code == 0, capsys.readouterr().out
    used = re.findall(r"uses: (.+)", "".join(file.read_text() for file in FILES))
    assert len(used) > 5 and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+|\./[\w./-]+", line) for line in used)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_run_is_there(file: Path) -> None:
    named = re.findall(r"(?:scripts|tests)/[\w./-]+\.\w+", commands(file))
    assert named and all((ROOT / name).is_file() for name in named)
    for job in jobs(file).values():
        for matrix in job.get("strategy", {}).get("matrix", {}).get("include", ()):
            assert set(matrix["extras"].split(",")) <= set(EXTRAS)
            assert all(list(ROOT.glob(pattern)) for pattern in matrix["tests"].split()), matrix


def test_the_site_is_built_with_what_pyproject_says() -> None:
    assert re.findall(r'"(mkdocs[^"]+)"', commands(ROOT / ".github/workflows/docs.yml")) == EXTRAS["docs"]


def test_the_lowest_versions_of_an_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the extras inside it too, and of none else; the higher of two."""
    minimum = runpy.run_path(str(ROOT / "scripts" / "minimum.py"))["minimums"]
    project = {
        "name": "hf-optim",
        "dependencies": ["torch>=2.6"],
        "optional-dependencies": {"a": ["hf-optim[b]", "Yaml_x>=2"], "b": ["yaml-x>=3", "z>=1"], "c": ["z>=9"]},
    }
    lowest = {name: str(version) for name, version in minimum(project, ["a"]).items()}
    assert lowest == {"torch": "2.6", "yaml-x": "3", "z": "1"}
    with pytest.raises(SystemExit, match="does not say from which version on"):
        minimum({**project, "dependencies": ["torch"]}, ["a"])
