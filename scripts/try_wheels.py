"""Tries what is to be released in empty environments, one for the core and one for each extra that a user wants alone.

    python scripts/try_wheels.py dist/* [--only core --only study] [--limit MINUTES]

`--only` tries one extra alone. Each step is told when it begins, with the minutes since the start; one that takes
longer than the limit (15 minutes for each) is ended, and is a failure that says so.

Each environment gets the wheel with one extra and nothing else, and does what that extra is for; what belongs to
another extra must be one line that names it. Of the sdist the core is tried.

That is several GB of downloads without a cache: a release runs it, the suite does not. Where uv is on the path it makes
the environments, in seconds once it has the packages. `PIP_CONSTRAINT=FILE` (`UV_CONSTRAINT=FILE`) with a line
`torch==VERSION+cpu` tries it with a small torch, where that one can be found.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEP = (
    "import torch, hf_optim; w = torch.nn.Parameter(torch.ones(3)); o = hf_optim.create('adamw', [w]); "
    "w.grad = torch.ones(3); o.step(); assert (w < 1).all()"
)
TRAINER = """
import torch, transformers, hf_optim
class Line(transformers.PreTrainedModel):
    config_class = transformers.PretrainedConfig
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(2, 1)
        self.post_init()
    def forward(self, x, labels):
        out = self.layer(x).squeeze(-1)
        return {"loss": (out - labels).square().mean(), "logits": out}
args = transformers.TrainingArguments("out", max_steps=3, use_cpu=True, report_to=[], save_strategy="no")
rows = [{"x": torch.tensor([1.0, i]), "labels": torch.tensor(2.0)} for i in range(8)]
trainer = transformers.Trainer(Line(transformers.PretrainedConfig()), args, train_dataset=rows)
hf_optim.attach(trainer, "smaran")
trainer.train()
"""
OURS = ["-m", "hf_optim"]
TRAIN = [*OURS, "train", "--size", "smoke", "--overwrite", "--output", "run", "--task"]
STUDY = ([*OURS, "study", "smoke"], "hf-optim[study]")
#: extra -> (commands that work, commands that end with one line, and the extra that this line names)
TRIED: dict[str, tuple[list[list[str]], list[tuple[list[str], str]]]] = {
    "core": (
        [["-c", STEP], [*OURS, "list"], [*OURS, "list", "--tasks"], [*OURS, "info", "smaran"], [*OURS, "doctor"]],
        [
            STUDY,
            ([*TRAIN, "vision"], "hf-optim[tasks]"),
            ([*OURS, "check", "adamw"], "hf-optim[study]"),
            (["-c", "from hf_optim import attach"], "hf-optim[hf]"),
            (["-c", "from hf_optim.study import run"], "hf-optim[study]"),
        ],
    ),
    "hf": ([["-c", TRAINER], [*OURS, "doctor"]], [STUDY, ([*TRAIN, "vision"], "hf-optim[tasks]")]),
    "tasks": (
        [[*TRAIN, "vision", "--model", "mlp"]],
        [STUDY, ([*TRAIN, "vision", "--model", "densenet121"], "hf-optim[vision]"), ([*TRAIN, "ddpm"], "[diffusion]")],
    ),
    "vision": ([[*TRAIN, "vision", "--model", "densenet121"]], [STUDY]),
    "diffusion": ([[*TRAIN, "ddpm"]], [STUDY]),
    "study": (
        [[*OURS, "study", "smoke", "--jobs", "1"], [*OURS, "doctor"]],
        [([*OURS, "study", "smoke", "--launch", "slurm", "--output", "launched"], "hf-optim[slurm]")],
    ),
    "slurm": ([["-c", "import submitit"], [*OURS, "study", "smoke", "--dry-run"]], []),
    "trl": ([["-c", TRAINER], ["-c", "from trl import SFTTrainer"]], [STUDY]),
}


BEGUN = time.monotonic()


def tell(text: str) -> None:
    print(f"[{(time.monotonic() - BEGUN) / 60:5.1f} min] {text}", flush=True)


def short(arguments: list[str]) -> str:
    """A command in a line: of a program's text the first words."""
    return " ".join(" ".join(arguments).split())[:70]


def environment(folder: Path, wanted: str, limit: float) -> Path:
    """The interpreter of a new environment that has `wanted` and nothing else. Raises what subprocess does."""
    python, uv = folder / "bin" / "python", shutil.which("uv")
    making = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    installing = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    subprocess.run([*making, folder], check=True, timeout=limit)
    subprocess.run([*installing, "--quiet", wanted], check=True, timeout=limit)
    return python


def tried(file: Path, extra: str, folder: Path, limit: float) -> list[str]:
    """What went wrong with one extra of a wheel or sdist; empty if nothing did."""
    tell(f"{file.name}: {extra}: installing into an empty environment")
    try:
        python = environment(folder / "env", str(file) if extra == "core" else f"{file}[{extra}]", limit)
    except subprocess.SubprocessError as error:
        how = "exit code {0.returncode}" if hasattr(error, "returncode") else "not done after {0.timeout:g} s"
        return [f"{extra}: not installed, {how.format(error)}"]
    told = []
    works, misses = TRIED[extra]

    def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        tell(f"  {short(arguments)}")
        try:
            return subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            late = f"not ended after {limit / 60:g} minutes"
            return subprocess.CompletedProcess(arguments, 124, "", late)

    for arguments in works:
        done = run(arguments)
        if done.returncode:
            told.append(f"{extra}: {' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    for arguments, says in misses:
        done = run(arguments)
        lines = done.stderr.splitlines() or [""]
        ours = arguments[0] == "-m"  # a program's traceback is Python's; its last line is ours
        if done.returncode != (2 if ours else 1) or says not in lines[-1] or (ours and len(lines) > 1):
            told.append(f"{extra}: {' '.join(arguments)} should say {says} in one line: {done.stderr[-300:]}")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="the wheel, and the sdist")
    parser.add_argument("--only", action="append", choices=TRIED, help="this extra alone; may be repeated")
    parser.add_argument("--limit", type=float, default=15.0, metavar="MINUTES", help="of each step (default: 15)")
    given = parser.parse_args()
    told = []
    todo = [(file, e) for file in given.files for e in ((given.only or TRIED) if file.suffix == ".whl" else ("core",))]
    for number, (file, extra) in enumerate(todo, 1):
        with tempfile.TemporaryDirectory() as folder:
            wrong = tried(file.resolve(), extra, Path(folder), 60 * given.limit)
        tell(f"{file.name}: {extra}: {len(wrong)} wrong ({number} of {len(todo)} tried)")
        for line in wrong:
            print(f"  {line}", flush=True)
        told += wrong
    print(f"{len(told)} wrong, as said above" if told else "each does what it is for, and says what it lacks")
    return int(bool(told))


if __name__ == "__main__":
    raise SystemExit(main())
