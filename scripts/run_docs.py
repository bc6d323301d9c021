"""Runs every command and block of the README and the documents as printed, in order, in an empty folder.

    python scripts/run_docs.py                            # all pages; what takes longer than --limit is stopped
    python scripts/run_docs.py --pages docs/notebook.md   # these alone
    python scripts/run_docs.py --limit 0                  # to the end of every command: days

A line of shell is one command; a block of Python is given the names that a reader has (`docs_world`); YAML is a study,
or a part of one, and is planned. What cannot be run here is left out with its reason. Prints a line each and a summary
in Markdown; ends with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import docs_world

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:^<!-- ([\w. ]+) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)

#: what is left out, and why; the first pattern that is found in a line
LEFT_OUT = {
    r"^pip install": "installs",
    r"^bash scripts/": "makes an environment of its own first",
    r"^\.venv/bin/": "the repository's own checks, run by `scripts/test.sh`",
    r"^mkdocs serve|^tensorboard --logdir": "serves until it is stopped",
    r"--launch slurm": "needs SLURM: `scripts/try_slurm.sh`",
    r"wandb": "needs an account with W&B",
    r"lm_ladder_gpu +#|lm_ladder_gpu$": "needs a GPU",
    r"--size paper(?!.*--dry-run)|^for .*--size paper": "needs the Hub or a GPU",
    r"my/checkpoint|my/model": "a model of the reader's own",
}
#: what later lines read, and so runs to its end
WHOLE = re.compile(
    r"study (quickstart|own\.yaml|my\.yaml)|--size smoke|^hf-optim (report|results|export|publish|check)"
)
#: a study around a block of YAML that is a part of one
AROUND = {"name": "part", "baseline": "AdamW", "seeds": 5}
TASKS = [{"task": "vision", "model": "mlp", "size": "smoke", "overrides": {"steps": 4}}]
OPTIMIZERS = [{"name": "adamw", "label": "AdamW"}, {"name": "smaran", "label": "SMARAN"}]


@dataclass(frozen=True)
class Block:
    """A block of a page; `title` is the comment before it, a file's name or a note."""

    page: str
    title: str
    language: str
    text: str

    def commands(self) -> list[str]:
        """A block of shell as commands: continued lines and loops are one."""
        out: list[str] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if out and out[-1].startswith("for ") and not out[-1].rstrip().endswith("done"):
                out[-1] += "\n" + line
            elif line.strip() and not line.startswith("#"):
                out.append(line)
        return out


def pages() -> list[Path]:
    """README, the overview, and every other page that has blocks."""
    first = [ROOT / "README.md", ROOT / "docs" / "index.md"]
    return [*first, *(p for p in sorted((ROOT / "docs").rglob("*.md")) if p not in first), ROOT / "CONTRIBUTING.md"]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order, without plain text."""
    name = str(page.relative_to(ROOT))
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(name, title, lang, text) for title, lang, text in found if lang in ("bash", "python", "yaml")]


def left_out(command: str) -> str:
    """Why a command is not run; empty where it is."""
    return next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, command)), "")


# --- Python and YAML -------------------------------------------------------------------------------------------------


def run_python(block: Block) -> None:
    """Executes a block with the names that a reader has; a whole script is laid down under its name."""
    if block.title.endswith(".py"):
        Path(block.title).write_text(block.text, encoding="utf-8")
        compile(block.text, block.title, "exec")
        return
    from accelerate.state import AcceleratorState, GradientState

    code = compile(textwrap.dedent(block.text), block.page, "exec")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    scope: dict[str, Any] = {"__name__": "page"}
    for name in _names(code):
        if name in docs_world.NAMES:
            docs_world.give(name, scope)
    exec(code, scope)


def _names(code: CodeType) -> list[str]:
    """Every global name and attribute of a code object, those of functions inside it included."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


def run_yaml(block: Block) -> str:
    """Plans a study, or the part of one that the block shows; a claim is loaded. Gives the name of its file."""
    from hf_optim.core.yaml12 import load
    from hf_optim.study.plan.plan import expand
    from hf_optim.study.plan.source import parse

    value = load(block.text)
    if "claims" in value or "optimizers" in value:
        name = f"{value['name']}.yaml"
        Path(name).write_text(block.text, encoding="utf-8")
        if "claims" in value:
            from hf_optim.claims import claim

            claim.load(name)
        else:
            expand(parse(block.text, block.page))
        return name
    import json

    base = dict(AROUND)
    if "repetitions" in (value.get("tuning") or {}):
        base.pop("seeds")
        value.pop("seeds", None)
    elif "variance" in value or "ladder" in value:
        base["tuning"] = {"trials": 8}
    base |= {"optimizers": [*OPTIMIZERS, *_named(value)]}
    base |= {} if "ladder" in value else {"tasks": TASKS}
    expand(parse(json.dumps(base | value), block.page))
    return ""


def _named(value: dict[str, Any]) -> list[Any]:
    """The optimizers that a part names and the study around it lacks."""
    labels = [label for label in (value.get("tuning") or {}).get("space", ()) if label not in ("AdamW", "SMARAN")]
    specs = {"TLR(SGD)": {"name": "tlr", "base": {"name": "sgd"}, "label": "TLR(SGD)"}}
    return [specs.get(label, label) for label in labels]


# --- shell -----------------------------------------------------------------------------------------------------------


def run_shell(command: str, folder: Path, limit: float) -> tuple[str, str]:
    """("ok" | "stopped" | "failed", its last lines)."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        status = "ok"
        try:
            status = "failed" if process.wait(limit or None) else "ok"
        except subprocess.TimeoutExpired:
            status = "stopped"
            for how in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
        out.seek(0)
        return status, out.read()[-1500:]


# --- all of it -------------------------------------------------------------------------------------------------------

Result = tuple[str, str, str, str]  # page, status, what, why


def run_page(page: Path, folder: Path, limit: float, quick: bool = False) -> Iterator[Result]:
    """Everything of a page in order; with `quick` no shell."""
    for block in blocks(page):
        place = folder
        for command in block.commands() if block.language == "bash" and not quick else ():
            printed = command.split("  #")[0].strip()
            if why := left_out(command):
                yield block.page, "left out", printed, why
                continue
            if (moved := re.fullmatch(r"cd (\S+)", printed)) is not None:
                place = place / moved[1]
                continue
            for name in docs_world.FURTHER:
                if re.search(rf"studies/{name}\b", command) and not (folder / "studies" / name).exists():
                    run_shell(f"hf-optim study {name}.yaml", folder, 0)
            status, said = run_shell(command, place, 0 if WHOLE.search(command) else limit)
            yield block.page, status, printed, said
        if block.language == "bash":
            continue
        what = f"{block.language}: {block.text.strip().splitlines()[0]}"
        printed_out = io.StringIO()
        try:
            with contextlib.chdir(folder), contextlib.redirect_stdout(printed_out):
                run_python(block) if block.language == "python" else run_yaml(block)
            yield block.page, "ok", what, ""
        except Exception as error:  # whatever the page's code raises is the result
            yield block.page, "failed", what, f"{type(error).__name__}: {error}"


def summary(results: list[Result]) -> str:
    """How much ran, in Markdown, and why what was left out was."""
    count = Counter(status for _, status, _, _ in results)
    reasons = Counter(why for _, status, _, why in results if status == "left out")
    lines = [f"{len(results)} commands and blocks: " + ", ".join(f"{n} {status}" for status, n in count.most_common())]
    return "\n".join(lines + [f"- {n} left out: {why}" for why, n in reasons.most_common()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="*", help="paths from the root (default: all)")
    parser.add_argument("--limit", type=float, default=60, help="seconds a command may take; 0: no limit (default: 60)")
    parser.add_argument("--folder", help="where it runs; must not exist (default: a temporary folder)")
    given = parser.parse_args()
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        folder = Path(given.folder or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        folder.mkdir(exist_ok=given.folder is None)
        docs_world.lay(folder)
        for page in pages():
            if given.pages and str(page.relative_to(ROOT)) not in given.pages:
                continue
            start = time.monotonic()
            for result in run_page(page, folder, given.limit):
                results.append(result)
                name, status, what, why = result
                took, start = time.monotonic() - start, time.monotonic()
                print(f"{status:8} {took:6.1f} s  {name}: {what}", flush=True)
                if status in ("failed", "left out"):
                    print(textwrap.indent(why.strip(), "         "), flush=True)
    print(summary(results))
    return int(any(status == "failed" for _, status, _, _ in results))


if __name__ == "__main__":
    raise SystemExit(main())
