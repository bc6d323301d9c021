"""A machine that misbehaves: launchers at once or killed as they begin, compilers that are none, half a kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ranks
from study_fakes import make_study

from hf_optim.commands.main import main
from hf_optim.core import caches
from hf_optim.engine import kernels
from hf_optim.errors import UserError
from hf_optim.study import conduct
from hf_optim.study.folder import changes
from hf_optim.study.folder.merge import merge
from hf_optim.study.launch import beginning
from hf_optim.study.plan import plan as planning
from hf_optim.study.plan.source import parse

YAML = """
name: tiny
baseline: adamw
seeds: 2
tasks: [{task: vision, model: mlp, size: smoke}]
optimizers: [{name: adamw}, {name: sgd, lr: 0.1}]
"""
SOURCE = 'extern "C" void run(void*) {}'


def begin(folder: Path, text: str = YAML) -> None:
    beginning.prepare(planning.expand(parse(text, "tiny.yaml")), text, folder)


AT_ONCE = """
import pathlib, sys
sys.path.insert(0, {tests!r})
import torch.distributed
from test_attack_machine import begin
torch.distributed.init_process_group("gloo")
for number in range(20):
    torch.distributed.barrier()
    begin(pathlib.Path(sys.argv[1]) / str(number))
torch.distributed.destroy_process_group()
"""


# --- launchers -------------------------------------------------------------------------------------------------------


def test_launchers_that_start_at_once_begin_one_study(tmp_path: Path) -> None:
    """The second found the first one's `runs/`, no plan yet, and said that the folder holds no study."""
    ranks.program(AT_ONCE.format(tests=str(Path(__file__).parent)), tmp_path, world=2)
    for number in range(20):
        assert (tmp_path / str(number) / "questions.jsonl").read_text().count("\n") == 1


@contextlib.contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, moment: int, *names: str) -> Iterator[None]:
    """Whoever works within it is killed at so many calls of `names` of `os`, and does not tidy up."""

    class Killed(BaseException):
        pass

    left = iter(range(moment))

    def until(act: Any) -> Any:
        def step(*given: Any, **more: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return act(*given, **more)

        return step

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        for name in names:
            patched.setattr(os, name, until(getattr(os, name)))
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        yield


@pytest.mark.parametrize("moment", range(8))
def test_a_launcher_that_is_killed_as_it_begins_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Killed between the first folder and the plan, the same command said that the folder holds no study."""

    with killed(monkeypatch, moment, "replace", "mkdir", "open"):
        begin(tmp_path / "s")
    begin(tmp_path / "s")
    assert changes.read_plan(tmp_path / "s").name == "tiny"
    assert {entry.name for entry in (tmp_path / "s").iterdir()} == {
        ".lock",
        "study.yaml",
        "plan.json",
        "questions.jsonl",
        "runs",
    }


@pytest.mark.parametrize("moment", range(4))
def test_a_merge_that_is_killed_as_it_begins_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    study = make_study(tmp_path / "a")
    with killed(monkeypatch, moment, "replace", "rename"):
        merge([study], tmp_path / "into")
    merge([study], tmp_path / "into")
    assert not [path for path in (tmp_path / "into").rglob(".*") if path.name != ".lock"]


def test_another_ones_folder_is_no_study_s(tmp_path: Path) -> None:
    for name, text in (("study.yaml", b"name: mine\n"), ("study.yaml", b"\xff"), ("runs", None), ("x", b"")):
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        (folder / name).mkdir() if text is None else (folder / name).write_bytes(text)
        with pytest.raises(UserError, match="is not empty and holds no study"):
            begin(folder)
        assert [entry.name for entry in folder.iterdir()] == [name]


@pytest.mark.parametrize("content", [b"name: tiny # mine\n", b"\xff"])
def test_a_study_yaml_that_was_changed_in_its_folder_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """The command that began the folder wrote over it without a word. What was written here itself is no loss."""
    monkeypatch.setattr(conduct, "_run_here", lambda *_, **__: None)
    folder, file = tmp_path / "s; touch mark", tmp_path / "tiny.yaml"
    for text in (YAML, f"# more\n{YAML}"):
        file.write_text(text)
        assert main(["study", str(file), "--output", str(folder)]) == 0
    assert not [*folder.glob("study-*")]
    (folder / "study.yaml").write_bytes(content)
    for _ in range(2):
        assert main(["study", str(file), "--output", str(folder)]) == 0
    assert (folder / "study-1.yaml").read_bytes() == content and not (folder / "study-2.yaml").exists()
    assert (folder / "study.yaml").read_text() == text
    said = capsys.readouterr().out
    assert said.count("is kept as study-1.yaml") == said.count(f"hf-optim study '{folder}/study-1.yaml' --output") == 1


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("report STUDY", ["STUDY/table.md", "STUDY/pages/x.html"]),
        ("export STUDY --figure svg", ["STUDY/figures/mlp-result.svg"]),
        ("export STUDY --figure svg --output HERE", ["HERE/mlp-result.svg"]),
        ("export STUDY --table csv --output HERE/t.csv", ["HERE/t.csv"]),
        ("results STUDY --export HERE/t.parquet", ["HERE/t.parquet"]),
    ],
)
def test_what_a_killed_writer_left_is_taken_away(tmp_path: Path, words: str, names: list[str]) -> None:
    """What was half written stayed for good, hidden, in the user's own folder; there no other name is ours."""
    places = {"STUDY": str(make_study(tmp_path / "study")), "HERE": str(tmp_path / "here")}

    def put(text: str) -> str:
        for place, path in places.items():
            text = text.replace(place, path)
        return text

    left = [Path(put(name)) for name in names]
    left = [path.with_name(f".{path.name}.{'0' * 32}.tmp") for path in left]
    theirs = tmp_path / "here" / f".theirs.{'0' * 32}.tmp"
    for path in (*left, theirs):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert main(put(words).split()) == 0
    assert not [path for path in left if path.exists()] and theirs.exists()


# --- compilers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Kernels in a folder of their own, and a compiler that is asked anew."""
    monkeypatch.setenv("HF_OPTIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "_flags", [kernels._FLAGS])
    kernels.compiler.cache_clear()
    yield
    kernels.compiler.cache_clear()


def script(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o700)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\nprintf '\\377\\376'; exit 3\n",
        "#!/bin/sh\nexit 0\n",
        "#!/bin/sh\nexec sleep 60\n",
        "#!/there/is/none\n",
        "no program \x01\x02",
    ],
)
def test_what_is_no_compiler_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Any, text: str
) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "c", text)))
    monkeypatch.setattr(kernels, "_TO_ANSWER", 2)
    assert kernels.compiler()[0] != str(tmp_path / "c")


VERSION = '#!/bin/sh\nif [ "$1" = --version ]; then printf "\\377 one\\n"; exit 0; fi\n'


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("exit 0", "no folder for kernels"),  # and has read nothing
        ("cat > /dev/null; for last; do :; done; cp /proc/self/exe $last", "no folder for kernels"),
        ("yes '\xff error: it' | head -c 1000000 >&2; exit 1", "error: it"),
        ("sleep 60 & exit 1", "the C\\+\\+ compiler fails"),
        ("exec sleep 60", "has not ended after 2 seconds"),
    ],
)
def test_a_compiler_that_makes_no_kernel_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Any, does: str, said: str
) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "c", VERSION + does + "\n")))
    monkeypatch.setattr(kernels, "_TO_BUILD", 2)
    with pytest.raises(kernels.Unbuildable, match=said):
        kernels.Building(SOURCE + " " * 1_000_000).kernel()  # more than a pipe holds
    assert not [*(tmp_path / "cache" / "kernels").iterdir()]


def test_half_a_kernel_is_built_again(tmp_path: Path, alone: Any) -> None:
    """A file of which the disk has kept a part ended every process that loaded it."""
    kernels.Building(SOURCE).kernel()
    (kept,) = (tmp_path / "cache" / "kernels").iterdir()
    whole = kept.read_bytes()
    for part in (b"", whole[: len(whole) // 2], whole[:5000] + bytes(len(whole) - 5000)):
        kept.unlink()
        kept.write_bytes(part)
        kept.chmod(0o700)
        ranks.program(f"from hf_optim.engine import kernels; kernels.Building({SOURCE!r}).kernel()")
        assert kept.read_bytes() == whole


def test_many_build_the_same_kernel_at_once(tmp_path: Path, alone: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        built = [*pool.map(lambda _: kernels.Building(SOURCE).kernel(), range(4))]
    assert len(built) == 4
    assert len([*(tmp_path / "cache" / "kernels").iterdir()]) == 1


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [".", "theirs"])
def test_a_home_in_the_current_folder_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: str
) -> None:
    """Kernels that lie in it would be loaded."""
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HF_OPTIM_CACHE", raising=False)
    assert all(folder.is_absolute() for folder in caches.folders("kernels"))
    assert main(["list"]) == 2
    assert capsys.readouterr().err == "error: this user has no home folder: set HOME to one, from / on\n"


@pytest.mark.parametrize("where", ["slurm", "debug"])
def test_a_folders_name_is_no_command_of_a_job_and_no_other_folder(
    where: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`%t` is a task's number to submitit, also in the name of a folder, which is then another one's."""
    pytest.importorskip("submitit")
    from hf_optim.study.launch import jobs

    (tmp_path / "bin").mkdir()
    for name, does in (("srun", ":"), ("sbatch", f'cd {tmp_path}; sh "$1" >&2; echo Submitted batch job 1')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for name in (
        "theirs\ntouch canary #",
        "it's $(touch canary)",
        "theirs%t",
        "theirs%3j",
        "the%%irs",
        "th\\eirs",
        "9%",
    ):
        (folder := tmp_path / name / "mine").mkdir(parents=True)
        plain = name in ("it's $(touch canary)", "9%")
        with contextlib.nullcontext() if plain else pytest.raises(UserError, match="in it, which submitit or SLURM"):
            jobs.check(folder, jobs.Launch(where), jobs.Execution())
            jobs._submit(folder, jobs.Launch(where), jobs.Share("", jobs.Execution()), 1)
        assert (folder / "jobs").exists() == plain
    assert {"canary", "theirs0"}.isdisjoint(os.listdir(tmp_path))


def test_a_folder_called_as_a_home_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    from hf_optim.study.launch import jobs

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (job,) = jobs._submit(Path("~"), jobs.Launch("debug"), jobs.Share("", jobs.Execution()), 1)
    assert job.paths.folder.parent == tmp_path / "~" / "jobs"
    assert not (tmp_path / "home").exists()
