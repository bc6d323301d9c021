"""What is installed: a wheel whose modules stay inside hf_optim, beside a `tasks.py` of somebody's own."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, unpacked as pip does."""
    pytest.importorskip("setuptools", minversion="77")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("hf_optim", "tasks", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(source / built.stdout.split()[-1]) as wheel:
        wheel.extractall(folder)
    return folder


def test_the_wheel_has_one_module(installed):
    assert {p.name for p in installed.iterdir() if p.suffix != ".dist-info"} == {"hf_optim"}
    for file in ("py.typed", "__init__.pyi", "study/report/report.css", "configs/studies/quickstart.yaml"):
        assert (installed / "hf_optim" / file).is_file(), file
    shipped = {p.relative_to(installed / "hf_optim/tasks") for p in (installed / "hf_optim/tasks").rglob("*.parquet")}
    assert shipped == {p.relative_to(ROOT / "tasks") for p in (ROOT / "tasks").rglob("*.parquet")} != set()


def test_tasks_work_beside_a_tasks_module_of_ones_own(installed, tmp_path):
    (tmp_path / "tasks.py").write_text("raise SystemExit('somebody else\\'s')\n", encoding="utf-8")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import hf_optim; from hf_optim.experiment import task; "
        "from hf_optim.study.plan.shipped import shipped_studies; assert 'smoke' in shipped_studies(); "
        "t = task.load('logistic'); t.data(t.preset(t.models[0], 'smoke'), None); print(hf_optim.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(installed)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == installed / "hf_optim" / "__init__.py"


def test_old_places_hand_names_on():
    from hf_optim.bases.line_search import LineSearch
    from hf_optim.bases.optimizer import Optimizer
    from hf_optim.bases.wrapper import Wrapper
    from hf_optim.core.rule import Rule, Transform
    from hf_optim.experiment.task import Task
    from hf_optim.experiment.training import train

    old = {name: importlib.import_module(f"hf_optim.{name}") for name in OLD}
    assert old["optimizer"].Optimizer is Optimizer and old["wrapper"].Wrapper is Wrapper
    assert (old["rule"].Rule, old["rule"].Transform) == (Rule, Transform)
    assert old["linesearch"].LineSearch is LineSearch
    assert (old["task"].Task, old["task"].train) == (Task, train)


OLD = ("optimizer", "rule", "wrapper", "linesearch", "task")
