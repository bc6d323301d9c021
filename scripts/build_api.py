"""Writes docs/api/ from the docstrings and signatures of the public names: a page a package, and an index.

python scripts/build_api.py            write them, remove pages that are gone
python scripts/build_api.py --check    write nothing; exit 1 and name the pages that are out of date
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import generated_pages  # noqa: E402

import hf_optim  # noqa: E402
from hf_optim import study  # noqa: E402

FOLDER = ROOT / "docs" / "api"
#: page -> (what it is, its public names: "module:Name" or, where a file is a page's subject, "module:*")
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "hf_optim": (
        "The names at the top. The optimizers' classes have [pages of their own](../optimizers/index.md).",
        tuple(f"{home}:{name}" for name, home in hf_optim.FUNCTIONS.items() if home != "hf_optim.hub"),
    ),
    "hub": (
        "Trainer and Accelerate; all of it is also `hf_optim.NAME`, but for `Attachment`.",
        tuple(f"hf_optim.hub:{name}" for name in ("attach", "factory", "Session", "Monitor", "Callback", "Attachment")),
    ),
    "check": (
        "The conformance suite, for ours and anybody's.",
        tuple(f"hf_optim.check:{name}" for name in ("run", "registered", "Report", "Verdict")),
    ),
    "study": (
        "Studies from a notebook or a program, and what `hf-optim study`, `report` and `publish` call.",
        (
            *(f"{home}:{name}" for name, home in study.FUNCTIONS.items()),
            "hf_optim.study.conduct:study",
            "hf_optim.study.conduct:finish",
            "hf_optim.study.folder.publish:publish",
            "hf_optim.study.launch.jobs:Launch",
        ),
    ),
    "experiment": (
        "One run: what a task is, its specification, and training.",
        (
            "hf_optim.experiment.spec:RunSpec",
            "hf_optim.experiment.training:train",
            "hf_optim.experiment.task:*",
        ),
    ),
}

Definition = ast.FunctionDef | ast.ClassDef


def definition(module: str, name: str) -> Definition:
    """Where a name is defined, following `from ... import` (also those for types only, and the map of a package)."""
    tree = parsed(module)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name and node in tree.body:
            return node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and any(name in (a.asname, a.name) for a in node.names):
            return definition(node.module, next(a.name for a in node.names if name in (a.asname, a.name)))
    raise SystemExit(f"build_api.py: {module} defines no {name}")


def parsed(module: str) -> ast.Module:
    """A module's syntax; nothing is imported, so that pages are the same whatever is installed."""
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def public(module: str) -> list[str]:
    """The functions and classes of a file without an underscore, in its order."""
    nodes = (n for n in parsed(module).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))
    return [node.name for node in nodes if not node.name.startswith("_") and ast.get_docstring(node)]


def signature(node: ast.FunctionDef, name: str) -> str:
    """A call as it is written, in one line if it fits, else an argument a line."""
    arguments = ast.parse(ast.unparse(node)).body[0].args  # type: ignore[attr-defined]
    for some in (arguments.posonlyargs, arguments.args):
        some[:] = [argument for argument in some if argument.arg not in ("self", "cls")]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    text = f"{name}({ast.unparse(arguments)}){returns}"
    if len(text) <= 100:
        return text
    parts, level, at = [], 0, 0
    inner = ast.unparse(arguments)
    for i, letter in enumerate(inner):
        level += (letter in "([{") - (letter in ")]}")
        if letter == "," and level == 0:
            parts.append(inner[at:i].strip())
            at = i + 1
    parts.append(inner[at:].strip())
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def prose(doc: str) -> str:
    """A docstring as Markdown: its sections become lists, what is indented stays code."""
    lines: list[str] = []
    listing = False
    for line in doc.splitlines():
        header = re.match(r"(Args|Raises|Returns|Attributes):$", line)
        if header:
            lines += ["", f"**{header[1]}**", ""]
            listing = True
        elif listing and line.startswith("    "):
            entry = re.match(r"    ([A-Za-z_*][\w*, ]*): (.*)", line)
            lines.append(f"- `{entry[1]}`: {entry[2]}" if entry else f"  {line.strip()}")
        else:
            listing = listing and not line
            lines.append(line)
    return "\n".join(lines).strip()


def entry(module: str, name: str) -> list[str]:
    """A name's heading, signature and docstring, and those of a class's public methods."""
    node = definition(module, name)
    doc = ast.get_docstring(node)
    if not doc:
        raise SystemExit(f"build_api.py: {module}:{name} has no docstring")
    function = node if isinstance(node, ast.FunctionDef) else method(node, "__init__")
    shown = signature(function, name) if function else f"class {name}"
    lines = [f"## {name}", "", "```text", shown, "```", "", prose(doc), ""]
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            if (
                isinstance(member, ast.FunctionDef)
                and not member.name.startswith("_")
                and (doc := ast.get_docstring(member))
            ):
                attribute = any("property" in ast.unparse(d) for d in member.decorator_list)
                lines += [f"### {name}.{member.name}", ""]
                lines += [] if attribute else ["```text", signature(member, member.name), "```", ""]
                lines += [prose(dedent(doc)), ""]
    return lines


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    """A class's own method, if it has it."""
    return next((member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == name), None)


def page(title: str) -> str:
    """The Markdown page of one package."""
    about, names = PAGES[title]
    lines = [f"# {title if title == 'hf_optim' else f'hf_optim.{title}'}", "", about, ""]
    for place in names:
        module, _, name = place.partition(":")
        if name == "*":
            lines += [line for each in public(module) for line in entry(module, each)]
        else:
            lines += entry(module, name)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in "\n".join(lines).splitlines())).strip() + "\n"


def pages() -> dict[str, str]:
    """File name -> text of everything in docs/api."""
    rows = [
        "# The Python interface",
        "",
        "Written by `scripts/build_api.py` from the docstrings. What is not here may change without a word.",
        "",
        *(f"- [{title}]({title}.md): {about}" for title, (about, _) in PAGES.items()),
    ]
    return {"index.md": "\n".join(rows) + "\n"} | {f"{title}.md": page(title) for title in PAGES}


def stale(folder: Path = FOLDER) -> list[str]:
    """Names of the pages that are out of date."""
    return generated_pages.stale(pages(), folder)


def main() -> int:
    """Command line: 0, or 1 where --check finds stale pages."""
    return generated_pages.write(pages(), FOLDER, "build_api")


if __name__ == "__main__":
    raise SystemExit(main())
