"""The current folder is a stranger's: nothing that lies in it is loaded or heeded by our programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_optim.claims import claim
from hf_optim.study.launch import jobs
from hf_optim.study.plan import shipped

#: how a program of ours begins, and what it imports then
STARTS = {
    "command": "from hf_optim.commands.main import main; main(['cite', 'adamw'])",
    "job": "from hf_optim.study.launch.jobs import Share; Share('nowhere', 1, None, None)()",
}


def _python(code: str, folder: Path, *path: Path) -> str:
    """What Python prints that runs `code` in `folder`."""
    root = Path(__file__).resolve().parents[1]
    run = [sys.executable, "-P", "-c", code]
    environment = {"PYTHONPATH": ":".join(map(str, (*path, root))), "PATH": "/usr/bin:/bin"}
    return subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def torch(tmp_path: Path) -> Path:
    """A place with a torch that tells in which folder it was imported, as its libraries see it."""
    place = tmp_path / "packages"
    (place / "torch").mkdir(parents=True)
    (place / "torch" / "__init__.py").write_text("import os\nprint('torch sees', os.getcwd())\n")
    return place


@pytest.mark.parametrize("start", STARTS)
def test_torch_does_not_look_for_libraries_in_the_current_folder(start: str, tmp_path: Path, torch: Path) -> None:
    """A libcuda.so.1 there would be loaded, and would run."""
    code = (
        f"import os\ntry:\n    {STARTS[start]}\nexcept Exception:\n    pass\nimport torch\nprint('we see', os.getcwd())"
    )
    said = _python(code, tmp_path, torch)
    assert f"torch sees {sys.prefix}\n" in said and f"we see {tmp_path}\n" in said


def test_a_module_can_be_run_apart_from_the_current_folder(tmp_path: Path, torch: Path) -> None:
    (torch / "theirs.py").write_text("import sys, torch\nprint(sys.argv[1:], __name__)\n")
    run = [sys.executable, "-P", "-m", "hf_optim.core.importing", "theirs", "a", "-b"]
    said = _python(f"import subprocess; subprocess.run({run!r})", tmp_path, torch)
    assert said == f"torch sees {sys.prefix}\n['a', '-b'] __main__\n"


def test_a_matplotlibrc_of_the_current_folder_is_not_heeded(tmp_path: Path) -> None:
    """It may have LaTeX read files, and older versions of matplotlib evaluate what it says."""
    (tmp_path / "matplotlibrc").write_text("font.size: 33\n")
    code = "import matplotlib; print(matplotlib.rcParams['font.size'])"
    assert _python(code, tmp_path) == "33.0\n"
    assert _python(f"{STARTS['command']}; {code}", tmp_path).endswith("\n10.0\n")


def test_a_local_job_does_not_import_what_lies_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit starts it with `python -m`, for which a pickle.py there is the pickle of all."""

    class Executor:
        _executor = SimpleNamespace(parameters={})

        def update_parameters(self, **_: object) -> None:
            pass

        def submit(self, _: jobs.Share) -> dict[str, str]:
            return dict(os.environ)

    monkeypatch.setenv("PYTHONPATH", "mine")
    before = dict(os.environ)
    told = jobs._submit_local(Executor(), jobs.Share("nowhere", 1, None, None), 0)
    assert told["PYTHONSAFEPATH"] == "1" and told["PYTHONPATH"].endswith(f"{os.pathsep}mine") and os.environ == before


def test_a_name_of_ours_is_ours_whatever_the_current_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is called so could name code, and a YAML that is named may have its code run."""
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "agr-table6"):
        (tmp_path / name).write_text("name: theirs\ntasks: [{task: theirs.py:TASK}]\noptimizers: [sgd]\n")
    assert shipped.find("quickstart")[0].value["name"] == "quickstart"
    assert shipped.find("./quickstart")[0].value["name"] == "theirs"
    assert claim.load("agr-table6").paper == "AGR"
