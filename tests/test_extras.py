"""What a person without the extras is told, in a process in which their modules cannot be imported.

`scripts/try_wheels.py` does this in environments that really lack them.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hf_optim.core import extras
from hf_optim.errors import UserError

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
CORE = """
import io, sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import PathFinder
class Present:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Present if finder is PathFinder else finder for finder in sys.meta_path]
from hf_optim.commands.main import main
def run(*command):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(command))
    return code, out.getvalue(), err.getvalue()
"""


def core(code: str) -> None:
    modules = {module for brought in extras._BROUGHT.values() for module in brought}
    script = f"ABSENT = {modules!r}\n{CORE}\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_core_alone_lists_and_says_which_extra_a_command_needs() -> None:
    core("""
for command in (["list"], ["list", "--tasks"], ["info", "smaran"], ["info", "lm"], ["cite", "smaran"]):
    code, out, err = run(*command)
    assert code == 0 and out and not err, (command, code, err)
_, out, err = run("doctor")
assert not err and ("none installed: pip install 'hf-optim[hf]'" in out or "not installed: pip install hf-optim" in out)
for command, extra in {
    "study smoke": "study", "compare adamw sgd --task lm": "study", "check adamw": "study", "report x": "study",
    "train --task vision --size smoke": "tasks", "inspect .": "tasks",
}.items():
    code, out, err = run(*command.split())
    assert code == 2 and err.count("\\n") == 1 and f"pip install 'hf-optim[{extra}]'" in err, (command, code, err)
import hf_optim, hf_optim.study
for name, use in {
    "attach": lambda: hf_optim.attach, "Session": lambda: hf_optim.Session,
    "factory": lambda: hf_optim.factory("adamw"), "study.run": lambda: hf_optim.study.run,
}.items():
    try:
        use()
    except ModuleNotFoundError as error:
        extra = "study" if "study" in name else "hf"
        assert str(error).startswith(f"hf_optim.{name} needs ") and f"hf-optim[{extra}]" in str(error), error
    else:
        raise AssertionError(name)
""")


@pytest.mark.parametrize(
    ("module", "least", "extra"),
    [("transformers.trainer", "hf", "hf"), ("transformers", "tasks", "tasks"), ("yaml", "tasks", "study"),
     ("timm", "tasks", "vision"), ("yaml", "vision", "study"), ("numpy", "slurm", "slurm"), ("my_module", "hf", ""),
     (None, "hf", "")],
)  # fmt: skip
def test_the_extra_that_is_named_is_enough(module: str | None, least: str, extra: str) -> None:
    assert extras.bringing(module, least) == extra


def test_a_module_that_no_extra_brings_is_left_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="^No module named 'no_such_module'$"), extras.needed("this", "hf"):
        import no_such_module  # noqa: F401


def test_what_is_nearest_to_the_missing_module_has_said_it() -> None:
    with pytest.raises(UserError, match=r"^a model needs timm: pip install 'hf-optim\[vision\]'$") as caught:
        with extras.needed("this command", "tasks"), extras.needed("a model", "vision"):
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
    assert isinstance(caught.value, ModuleNotFoundError) and caught.value.name == "timm"


def test_what_transformers_hides_of_a_torchvision_for_another_torch_is_one_line() -> None:
    with pytest.raises(UserError) as caught, extras.needed("this command", "tasks"):
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:  # as transformers' lazy modules do
            raise ModuleNotFoundError("Could not import module 'PreTrainedModel'. Are this object's ...") from error
    assert str(caught.value) == (
        "this command needs what cannot be imported here: RuntimeError: operator torchvision::nms does not exist; "
        "install the torchvision that was built for your torch"
    )


def test_a_task_says_its_extra_as_commands_do(monkeypatch) -> None:
    from hf_optim.experiment.task import load

    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module in ("diffusers", "timm") else find(module))
    task = load("ddpm")
    with pytest.raises(UserError, match=r"^ddpm needs diffusers: pip install 'hf-optim\[diffusion\]'$"):
        task.data(task.preset("unet", "smoke"), None)
    from hf_optim.tasks.models import images

    with pytest.raises(UserError, match=r"^this model needs timm: pip install 'hf-optim\[vision\]'$"):
        images.model_class("timm")


def test_every_package_of_an_extra_has_its_module() -> None:
    """By pyproject.toml: what a user's extra names is known, under that extra or one inside it."""
    spelled = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml", "torch-fidelity": "torch_fidelity"}
    table = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    for extra in extras._BROUGHT:
        for line in table[extra]:
            name = re.split(r"[\[>]", line)[0]
            if name != "hf-optim":
                assert extras.bringing(spelled.get(name, name), "hf"), f"{extra}: {name}"


def test_a_study_that_would_lack_a_module_in_the_middle_does_not_begin(monkeypatch, tmp_path) -> None:
    from hf_optim.study import conduct

    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module == "pyarrow" else find(module))
    with pytest.raises(ModuleNotFoundError, match=r"^a study needs pyarrow: pip install 'hf-optim\[study\]'$"):
        conduct.study("smoke", output=str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()
    extras.installed("the doors", "hf")


def test_wheels_are_tried_within_a_limit_and_say_what_they_are_at(tmp_path, monkeypatch, capsys):
    """Of a release that tells nothing and does not end nobody has a verdict."""
    spec = importlib.util.spec_from_file_location("try_wheels", PYPROJECT.parent / "scripts" / "try_wheels.py")
    assert spec is not None and spec.loader is not None
    wheels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wheels)
    monkeypatch.setattr(wheels, "environment", lambda *_: sys.executable)
    monkeypatch.setattr(wheels, "TRIED", {"hf": ([["-c", "print(1)"], ["-c", "import time; time.sleep(60)"]], [])})
    (wrong,) = wheels.tried(tmp_path / "a.whl", "hf", tmp_path, limit=2)
    assert "time.sleep(60)" in wrong and "not ended after" in wrong
    told = capsys.readouterr().out
    assert "a.whl: hf: installing" in told and "-c print(1)" in told and told.startswith("[  0.")
