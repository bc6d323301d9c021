"""The current folder is a stranger's: nothing that lies in it is loaded or heeded by our programs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from attack_parts import command

from hf_optim.claims import claim
from hf_optim.core import caches, importing
from hf_optim.engine import kernels
from hf_optim.errors import UserError
from hf_optim.experiment import task
from hf_optim.experiment.spec import RunSpec
from hf_optim.study import conduct
from hf_optim.study.launch import jobs
from hf_optim.study.plan import plan as planning
from hf_optim.study.plan import shipped

#: how a program of ours begins, and what it imports then
STARTS = {
    "command": "from hf_optim.commands.main import main; main(['cite', 'adamw'])",
    "job": "from hf_optim.study.launch.jobs import Execution, Share; Share('nowhere', Execution())()",
}

#: the run of `hf-optim train --task vision --model mlp --size smoke --optimizer adamw --steps 4`
RUN = RunSpec("vision", "mlp", "smoke", {"name": "adamw"}, overrides={"steps": 4})


def _python(code: str, folder: Path, *path: Path) -> str:
    """What Python prints that runs `code` in `folder`."""
    root = Path(__file__).resolve().parents[1]
    run = [sys.executable, "-P", "-c", code]
    environment = {
        "PYTHONPATH": ":".join(map(str, (*path, root))),
        "PATH": "/usr/bin:/bin",
        "XDG_CACHE_HOME": str(folder / "own"),
    }
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


def test_matplotlib_opens_no_window(tmp_path: Path) -> None:
    """What the environment calls a backend may be a module of anybody's, or no word of matplotlib's: a traceback."""
    code = "import os; os.environ['MPLBACKEND'] = 'nonsense'; import matplotlib; print(matplotlib.get_backend())"
    assert _python(f"{STARTS['command']}; {code}", tmp_path).endswith("\nagg\n")


@pytest.mark.parametrize("file", ["mine.txt", ".env", ".comet.config"])
def test_a_script_that_is_launched_may_feed_comet(file: str, tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "comet_ml.py").write_text("print('comet is here')\n")
    (tmp_path / "mine.py").write_text("import comet_ml\n")
    (tmp_path / file).touch()
    code = "from hf_optim.commands.main import main; main(['launch', '--optimizer', 'adamw', 'mine.py'])"
    assert _python(code, tmp_path, tmp_path / "packages") == ("comet is here\n" if file == "mine.txt" else "")


@pytest.mark.parametrize("asked", [False, True])
def test_comet_is_imported_where_it_is_asked_for(asked: bool, tmp_path: Path) -> None:
    """transformers imports it wherever it is installed, and it writes its log over the file that a .env here names."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "comet_ml.py").write_text("print('comet is here')\n")
    ask = "from hf_optim.experiment import trackers; trackers.alone(['comet_ml']).__enter__()" if asked else "pass"
    code = "try:\n    import comet_ml\nexcept ImportError as error:\n    print(error)"
    said = _python(f"{STARTS['command']}\n{ask}\n{code}", tmp_path, tmp_path / "packages")
    assert said.endswith("\ncomet is here\n" if asked else "for runs that ask for it alone: --report-to comet_ml\n")


@pytest.mark.parametrize("place", ["packages", "."])
def test_a_module_that_is_launched_is_looked_for_here_where_it_is_not_installed(place: str, tmp_path: Path) -> None:
    """What lay beside a stranger's study took the place of whatever an installed one imports, or looks for."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "optional.py").write_text("print('theirs')\n")
    text = "try:\n    import optional\nexcept ImportError:\n    print('none')\n"
    (tmp_path / place / "mine.py").write_text(text)
    code = "from hf_optim.commands.main import main; main(['launch', '--optimizer', 'adamw', '-m', 'mine'])"
    assert _python(code, tmp_path, tmp_path / "packages") == ("none\n" if place == "packages" else "theirs\n")


def test_a_module_that_an_installed_package_lacks_is_one_line(tmp_path: Path) -> None:
    """A folder `tests` of one's own stands behind one that some package has installed: it was a traceback."""
    for place in (tmp_path / "packages" / "tests", tmp_path / "tests"):
        place.mkdir(parents=True)
        (place / "__init__.py").touch()
    (tmp_path / "tests" / "mine.py").touch()
    code = "import sys; from hf_optim.commands.main import main; sys.stderr = sys.stdout\n"
    code += "for name in ('tests.mine', 'nowhere', ''): main(['launch', '--optimizer', 'adamw', '-m', name])"
    said = _python(code, tmp_path, tmp_path / "packages").splitlines()
    assert len(said) == 3 and all("error: hf-optim launch: there is no module " in line for line in said)
    assert said[0].endswith("'tests.mine': tests is the one that is installed; start the file as a script")


def test_a_linker_takes_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GNU's looks there first for what its scripts name: code that lies there was linked into a kernel, and kept."""
    (tmp_path / "libgcc_s.so.1").write_text("INPUT(./theirs.o)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_OPTIM_CACHE", str(tmp_path / "mine"))  # the current folder's, as the user says
    kernels.Building('extern "C" void run(void*) {}').kernel()
    assert [file.suffix for file in (tmp_path / "mine" / "kernels").iterdir()] == [".so"]


#: as in `torch` and `triton`: what starts a program, and tells where
STARTER = """import os
def _build(): print('started in', os.getcwd())
class SubprocPool:
    __init__ = lambda _: _build()
class VecISA:
    check_build = lambda _: _build()
"""


@pytest.mark.parametrize("module", [name for name in importing._CHANGED if "util" not in name])
def test_what_torch_and_triton_start_does_not_look_into_the_current_folder(module: str, tmp_path: Path) -> None:
    *packages, name = module.split(".")
    folder = tmp_path / "packages"
    for package in packages:
        (folder := folder / package).mkdir(parents=True)
        (folder / "__init__.py").touch()
    (folder / f"{name}.py").write_text(STARTER)
    called = "().".join(importing._CHANGED[module][0].removesuffix(".__init__").split("."))
    start = f"{STARTS['command']}; import os, {module} as it; it.{called}()"
    said = _python(f"{start}; print('we are in', os.getcwd())", tmp_path, tmp_path / "packages")
    assert said.endswith(f"started in {sys.prefix}\nwe are in {tmp_path}\n")


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, (name, _) in importing._CHANGED.items()])
def test_what_is_changed_is_called_so_in_what_is_installed(module: str, name: str) -> None:
    top, _, rest = module.partition(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        pytest.skip(f"{top} is not installed")
    text = (Path(spec.origin).parent / f"{rest.replace('.', '/')}.py").read_text()
    known = r"def {0}\(|class {0}:|import {0}\b"
    assert all(re.search(known.format(part), text) for part in name.split("."))


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_processes_that_are_not_forked_take_nothing_from_the_current_folder(
    start: str, tmp_path: Path, torch: Path
) -> None:
    """As on macOS and by Python 3.14, where data are read ahead, and where a bar's lock is tracked."""
    here = tmp_path / "theirs"
    here.mkdir()
    for name in ("multiprocessing", "signal", "warnings", "_posixshmem"):
        (here / f"{name}.py").write_text("print('theirs runs', flush=True)\n")
    (torch / "work.py").write_text("import torch\ndef work(): pass\n")
    program = torch / "program.py"
    program.write_text(
        "from hf_optim.commands.main import main\n"
        "if __name__ == '__main__':\n"
        "    import multiprocessing, work\n"
        f"    context = multiprocessing.get_context({start!r})\n"
        "    lock, process = context.RLock(), context.Process(target=work.work)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    said = _python(f"import subprocess, sys; subprocess.run([sys.executable, {str(program)!r}])", here, torch)
    assert said == f"torch sees {sys.prefix}\n" * 2


def test_what_torch_compiles_is_kept_where_nobody_else_writes(tmp_path: Path, torch: Path) -> None:
    """In the temporary folder, where torch keeps it, whoever makes a folder of the user's name decides what is run."""
    (torch / "torch" / "__init__.py").write_text("import os\nprint(os.environ['TORCHINDUCTOR_CACHE_DIR'])\n")
    own = tmp_path / "own"
    code = f"{STARTS['command']}; import torch"
    assert _python(code, tmp_path, torch).endswith(f"\n{own}/hf_optim/inductor\n")
    assert caches.unsafe(own / "hf_optim" / "inductor") is None
    utils = torch / "torch" / "_inductor" / "runtime"
    utils.mkdir(parents=True)
    for folder in (utils, utils.parent):
        (folder / "__init__.py").touch()
    (utils / "cache_dir_utils.py").write_text("def default_cache_dir(): return 'anybodys'\n")
    told = f"{code}._inductor.runtime.cache_dir_utils as it; print(it.default_cache_dir())"
    assert _python(told, tmp_path, torch).endswith(f"\n{own}/hf_optim/inductor\n")
    kept = f"import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = 'theirs'; {code}"
    assert _python(kept, tmp_path, torch).endswith("\ntheirs\n")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000])
def test_a_cache_is_this_users_alone_whatever_the_umask(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where groups are of one user each, files are made for the group, and no kernel was ever kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_OPTIM_CACHE", raising=False)
    before = os.umask(umask)
    try:
        assert caches.safe("kernels") == (tmp_path / "cache" / "hf_optim" / "kernels", "")
    finally:
        os.umask(before)


def test_a_cache_of_the_current_folder_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody has sent is this user's own there, and no temporary folder where Python takes it for one."""
    monkeypatch.chdir(tmp_path)
    for variable in ("XDG_CACHE_HOME", "HF_OPTIM_CACHE"):
        monkeypatch.setenv(variable, "cache")
    assert caches.home() == Path.home() / ".cache" / "hf_optim"
    for place in (tmp_path, tmp_path / "tmp", Path("tmp")):
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        assert [*caches.folders("kernels")] == [caches.home() / "kernels"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path.parent))
    assert [*caches.folders("kernels")][1].parent.parent == tmp_path.parent


def test_a_cache_below_a_folder_of_everybodys_is_none(tmp_path: Path) -> None:
    """Ours while it is looked at, and renamed, with one of theirs in its place, by the time something in it is run."""
    everybodys = tmp_path / "shared"
    for way in (everybodys, tmp_path / "link"):
        for mode, taken in ((0o777, False), (0o1777, True), (0o775, True)):
            everybodys.mkdir(exist_ok=True)
            everybodys.chmod(mode)
            why = caches.unsafe(way / "me" / "hf_optim" / "kernels")
            assert why is None if taken else f"everybody may write {everybodys}" in str(why)
        if way == everybodys:
            (tmp_path / "link").symlink_to(everybodys / "me")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's link is made by root alone")
def test_a_link_of_somebody_else_is_no_cache(tmp_path: Path) -> None:
    """It leads to a folder of ours while it is looked at, and elsewhere when a kernel is loaded."""
    (tmp_path / "ours" / "kernels").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    assert caches.unsafe(tmp_path / "link" / "kernels") is None
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    assert "belongs to somebody else" in str(caches.unsafe(tmp_path / "link" / "kernels"))


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
    told = jobs._submit_local(Executor(), jobs.Share("nowhere", jobs.Execution()), 0)
    assert told["PYTHONSAFEPATH"] == "1" and told["PYTHONPATH"].endswith(f"{os.pathsep}mine") and os.environ == before


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        (f"runs/{RUN.id}", "train --task vision --model mlp --size smoke --optimizer adamw --steps 4"),
        ("studies/smoke", "study smoke --jobs 1"),
        ("reproductions/agr-table6-small", "reproduce agr-table6 --page"),
        ("landscapes", "landscape beale --optimizers sgd --steps 1"),
    ],
)
def test_where_the_user_names_no_folder_no_link_is_followed(
    place: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run would take away the checkpoints that it leads to."""
    mine = tmp_path / "mine" / "checkpoint-500" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    link = tmp_path / "theirs" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "theirs")
    code, _, said = command(capsys, *asked.split())
    assert code == 2 and f"{place} is a link, which is not followed unasked" in said
    assert list((tmp_path / "mine").iterdir()) == [mine.parent] and mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        (f"runs/{RUN.id}", "train --task vision --model mlp --size smoke --optimizer adamw --steps 4"),
        ("studies/smoke", "study smoke --jobs 1"),
        ("studies/sgd-vs-adamw-logistic-smoke", "compare sgd adamw --task logistic --size smoke --seeds 1 --jobs 1"),
        ("reproductions/agr-table6-small", "reproduce agr-table6 --page"),
    ],
)
def test_nor_is_a_link_on_the_way_to_where_the_user_names_no_folder(
    place: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind it lie runs and studies of the same names: a run would take their checkpoints away, too."""
    way, _, name = place.partition("/")
    mine = tmp_path / "mine" / name / "checkpoint-500" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / way).symlink_to(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "theirs")
    code, _, said = command(capsys, *asked.split())
    assert code == 2 and f"{way} is a link, which is not followed unasked" in said and f"--output {place}" in said
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [mine] and mine.read_text() == "mine"


def test_a_tracker_writes_through_no_link_in_the_folder_of_a_run(tmp_path: Path) -> None:
    from hf_optim.experiment.training import train

    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "runs").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="tensorboard would write where .*runs leads, which is a link"):
        train(RUN, tmp_path / "run", progress=False, report_to=["tensorboard"])
    assert not list((tmp_path / "mine").iterdir())


def test_a_name_of_ours_is_ours_whatever_the_current_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is called so could name code, and a YAML that is named may have its code run."""
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "agr-table6"):
        (tmp_path / name).write_text("name: theirs\ntasks: [{task: theirs.py:TASK}]\noptimizers: [sgd]\n")
    assert shipped.find("quickstart")[0].value["name"] == "quickstart"
    assert shipped.find("./quickstart")[0].value["name"] == "theirs"
    (tmp_path / "quickstart").rename(tmp_path / "study.yaml")
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "study.yaml").rename(tmp_path / "quickstart" / "study.yaml")
    ours, theirs = shipped.find("quickstart")[0], shipped.find("./quickstart")[0]
    assert (ours.value["name"], theirs.value["name"]) == ("quickstart", "theirs")
    plan = planning.expand(ours)
    assert conduct._folder("quickstart", None, plan) == Path("studies/quickstart")
    assert conduct._folder("./quickstart", None, plan) == Path("quickstart")
    assert claim.load("agr-table6").paper == "AGR"


@pytest.mark.parametrize("name", ["albert", "lm", "logistic", "translation", "vision"])
def test_a_set_of_ours_is_read_whatever_lies_under_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is called so was looked through all the same, and a link in it to nothing ended every run."""
    monkeypatch.chdir(tmp_path)
    known = task.load(name)
    for embedded in known.embedded:
        (tmp_path / embedded).mkdir()
        (tmp_path / embedded / "notes").symlink_to("nowhere")
    preset = known.preset(known.models[0], "smoke")
    for source in (None, preset.data.value):
        assert known.data(preset, source).name == preset.data.value


def test_a_link_to_itself_does_not_end_a_command(tmp_path: Path) -> None:
    """A part of transformers follows `src` of the current folder while it is imported."""
    (tmp_path / "src").symlink_to("src")
    words = ["train", "--task", "logistic", "--size", "smoke", "--dry-run"]
    assert "in all" in _python(f"from hf_optim.commands.main import main; main({words})", tmp_path)
