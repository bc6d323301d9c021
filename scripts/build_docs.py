"""Writes docs/optimizers/ from the code: a page for every registered optimizer and an index.

python scripts/build_docs.py            write them, remove pages of names that are gone
python scripts/build_docs.py --check    write nothing; exit 1 and name the pages that are out of date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import generated_pages  # noqa: E402

from hf_optim import registry  # noqa: E402
from hf_optim.commands.info import OPTIONS, searched  # noqa: E402
from hf_optim.core import definitions  # noqa: E402
from hf_optim.errors import UserError  # noqa: E402

FOLDER = ROOT / "docs" / "optimizers"
FAMILIES = {
    "plain": "needs nothing but gradients",
    "transform": "changes the gradient first",
    "matrix": "works on whole matrices",
    "loss-aware": "reads the loss of the batch",
    "line search": "evaluates the loss at trial points",
    "wrapper": "goes around another optimizer",
}


def sections(doc: str) -> dict[str, Any]:
    """A docstring's parts: `summary` (its first line), `body` (up to Args; the indented algorithm is Markdown's code),
    `args` and `raises` (names -> text), `source`, and `rest` (what a preset adds at the end)."""
    parts: dict[str, list[str]] = {"body": []}
    at = "body"
    for line in doc.splitlines():
        header = re.match(r"(Args|Raises):$|Source: (.*)", line)
        if header:
            at = "source" if header[2] else header[1].lower()
            parts[at] = [header[2]] if header[2] else []
        elif at == "source" and not line:
            at = "rest"
            parts[at] = []
        else:
            parts[at].append(line)
    return {
        "summary": parts["body"][0].strip(),
        "body": "\n".join(parts["body"][1:]).strip("\n"),
        "args": _entries(parts.get("args", [])),
        "raises": _entries(parts.get("raises", [])),
        "source": " ".join(parts.get("source", [])),
        "rest": "\n".join(parts.get("rest", [])).strip(),
    }


def _entries(lines: list[str]) -> dict[str, str]:
    """`name, name: text` lines, their continuations indented further, as names -> text."""
    entries: dict[str, str] = {}
    names = ""
    for line in dedent("\n".join(lines)).splitlines():
        entry = re.match(r"([A-Za-z_][A-Za-z_0-9, ]*): (.*)", line)
        if entry:
            names = entry[1]
            entries[names] = entry[2]
        elif names and line.strip():
            entries[names] += " " + line.strip()
    return entries


def value(v: Any) -> str:
    """A default as a person writes it."""
    if isinstance(v, str):
        return f'"{v}"'
    if isinstance(v, (tuple, list)):
        return "(" + ", ".join(value(x) for x in v) + ")"
    return f"{v:g}" if isinstance(v, float) and not v.is_integer() else str(v)


def search(space: tuple | None) -> str:
    """A search space in words."""
    if space is None:
        return ""
    return searched(space)


def memory(info: registry.Info) -> str:
    """Optimizer state, in words."""
    int8 = "" if info.int8_bytes is None else f", {info.int8_bytes:.2f} with state_dtype='int8'"
    own = f"{info.state_bytes} bytes a parameter (fp32){int8}"
    return f"{own}, and the base's" if info.family == "wrapper" else own


def needs(info: registry.Info) -> str:
    """What step() must be given."""
    if info.family == "wrapper":
        return "what its base needs"
    return {
        frozenset(): "gradients only",
        frozenset({"loss"}): "`step(loss=loss)` or `step(closure)`",
    }.get(info.needs, "`step(closure)`, or `step(loss=loss, evaluate=f)`")


def example(info: registry.Info) -> str:
    """A few lines that make it and step it."""
    given = {"lr": "0.1", "eta": "1e-3", "interval": "100"}
    hyper = "".join(f", {k}={given.get(k, '...')}" for k in info.required)
    if info.family == "wrapper":
        if info.base is None:
            hyper = ', base={"name": "sgd", "lr": 0.1}' + hyper
        if "interval" in info.defaults:
            hyper += ", interval=100"
    line = f'opt = hf_optim.create("{info.name}", model{hyper})'
    call = "opt.step(closure)" if "evaluate" in info.needs else "loss.backward()\nopt.step(loss=loss)"
    return f"```python\n{line}\n{call}\n```"


def page(name: str) -> str:
    """The Markdown page of one optimizer."""
    info = registry.info(name)
    doc = sections(info.doc)
    out = [f"# {name}", "", f"`{info.cls}`: {info.family}, {FAMILIES[info.family]}.", ""]
    out += [f"- Paper: {info.paper}", f"- Needs: {needs(info)}", f"- Memory: {memory(info)}", ""]
    out += [example(info), ""]
    if info.base is not None:
        fixed = ", ".join(f"{k}={value(v)}" for k, v in info.base.items())
        stem = registry.classes()[info.cls.rsplit(".", 1)[1]][0].rsplit(".", 1)[1]
        out += [
            f"A preset of [{stem}]({stem}.md) around {fixed}. The base's hyper-parameters go into `base`, as in",
            "`base={'lr': 0.1}`, without a name.",
            "",
        ]
    if info.arguments:
        stem = registry.classes()[info.cls.rsplit(".", 1)[1]][0].rsplit(".", 1)[1]
        changed = ", ".join(f"{k}={value(v)}" for k, v in info.arguments.items())
        out += [f"A preset of [{stem}]({stem}.md): its rule with {changed}.", ""]
    out += ["## Algorithm", "", doc["summary"], "", doc["body"], ""]
    if doc["rest"] and info.base is None:
        out += [doc["rest"], ""]
    out += ["## Hyper-parameters", "", "| name | default | where to search |", "|---|---|---|"]
    for k in info.required:
        out.append(f"| `{k}` | must be given | {search(info.search_space.get(k))} |")
    for k, v in info.defaults.items():
        out.append(f"| `{k}` | `{value(v)}` | {search(info.search_space.get(k))} |")
    out.append("")
    for k, text in doc["args"].items():
        special = text.removeprefix("as in hf_optim.Optimizer.").strip()  # the rest is said below
        out += [f"- `{k}`: {special}"] if special else []
    out.append("")
    if doc["raises"]:
        out += ["Raises " + " ".join(f"`{k}`: {v}" for k, v in doc["raises"].items()), ""]
    if info.options:
        out += ["Keyword-only: " + "; ".join(f"`{k}`, {OPTIONS.get(k, 'see above')}" for k in info.options) + ".", ""]
    ours = definitions.declared(name)
    if ours:
        out += [
            "## Definitions of our own",
            "",
            "The paper gives no formula for these; reports print them where a result used them.",
            "",
            *[f"- `{k}`: {text}" for k, text in ours.items()],
            "",
        ]
    if doc["source"]:
        out += ["## Source, and how it was read", "", doc["source"], ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in "\n".join(out).splitlines())).strip() + "\n"


def index() -> str:
    """The table of all optimizers."""
    rows = [
        "# Optimizers",
        "",
        "Made by `hf_optim.create(NAME, params_or_model, ...)`, in a study's YAML as `{name: NAME}`.",
        "Memory is the optimizer's own state. These pages are written by `scripts/build_docs.py`.",
        "",
        "| name | class | family | needs | bytes a parameter | paper |",
        "|---|---|---|---|---|---|",
    ]
    for name in registry.list_optimizers():
        info = registry.info(name)
        asks = "its base's needs" if info.family == "wrapper" else ", ".join(sorted(info.needs)) or "–"
        size = f"{info.state_bytes} + its base's" if info.family == "wrapper" else str(info.state_bytes)
        rows.append(f"| [{name}]({name}.md) | `{info.cls}` | {info.family} | {asks} | {size} | {info.paper} |")
    return "\n".join(rows) + "\n"


def pages() -> dict[str, str]:
    """File name -> text of everything in docs/optimizers."""
    return {"index.md": index()} | {f"{name}.md": page(name) for name in registry.list_optimizers()}


def stale(folder: Path = FOLDER) -> list[str]:
    """Names of the pages that are out of date."""
    return generated_pages.stale(pages(), folder)


def main() -> int:
    """Command line: 0, or 1 where --check finds stale pages."""
    return generated_pages.write(pages(), FOLDER, "build_docs")


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
