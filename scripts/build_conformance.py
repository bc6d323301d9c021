"""Builds docs/conformance.md and docs/conformance.json, and the reference trajectories of the conformance suite.

    python scripts/build_conformance.py               runs what is out of date, then writes the two files
    python scripts/build_conformance.py --all         runs everything (about a quarter of an hour on two cores)
    python scripts/build_conformance.py --references  writes hf_optim/check/references.json from the NumPy twins

The foreign part needs `pip install pytorch-optimizer schedulefree heavyball` and `pip install --no-deps bitsandbytes
torchao`; without a package, or with --ours, its rows are kept as they are. What has no rows is named on the page.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, DATA = ROOT / "docs" / "conformance.md", ROOT / "docs" / "conformance.json"
REFERENCES = ROOT / "hf_optim" / "check" / "references.json"
#: module -> its classes: the widely used, and some of every kind
FOREIGN = {
    "pytorch_optimizer": (
        "ADOPT",
        "AdEMAMix",
        "AdaBelief",
        "AdaBound",
        "AdaFactor",
        "Adai",
        "AdamP",
        "Adan",
        "AliG",
        "CAME",
        "DAdaptAdam",
        "DiffGrad",
        "Lamb",
        "Lion",
        "Lookahead",
        "MADGRAD",
        "NovoGrad",
        "PAdam",
        "Prodigy",
        "RAdam",
        "Ranger21",
        "SAM",
        "SGDP",
        "SOAP",
        "ScheduleFreeAdamW",
        "Shampoo",
        "StableAdamW",
        "Tiger",
        "Yogi",
    ),
    "schedulefree": ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree", "AdamWScheduleFreeClosure"),
    "heavyball": ("ADOPT", "AdamW", "Muon", "PSGDKron", "SFAdamW", "SOAP"),
    "bitsandbytes.optim": ("AdEMAMix", "Adam8bit", "AdamW", "Lion8bit", "PagedAdamW8bit"),
    "torchao.optim": ("Adam8bit", "AdamW4bit", "AdamW8bit", "AdamWFp8"),
}
#: what they cannot do without
HYPER = {"pytorch_optimizer:Ranger21": {"num_iterations": 100}}
#: parts of the suite that only show what was found
SHOWING = ("cli.py", "show.py", "__init__.py")


@cache
def code(text: str) -> ast.Module:
    """The syntax tree of a source text without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            del body[0]
    return tree


@cache
def dumped(text: str) -> bytes:
    """What of a source text counts."""
    return repr(plain(code(text))).encode()


def plain(node: object) -> object:
    """A syntax tree as pairs and lists without what is empty, which is the same by every version of Python."""
    if isinstance(node, list):
        return [plain(each) for each in node]
    if not isinstance(node, ast.AST):
        return node
    return type(node).__name__, [(key, plain(value)) for key, value in ast.iter_fields(node) if value not in (None, [])]


def fingerprint(*files: Path, extra: str = "") -> str:
    """The code of files without comments and docstrings, as 12 hex digits."""
    digest = hashlib.sha256(extra.encode())
    for file in sorted(files):
        digest.update(dumped(file.read_text(encoding="utf-8")))
    return digest.hexdigest()[:12]


def imported(file: Path) -> set[Path]:
    """A file of the package and all files of the package that it imports, directly or not, without those that only
    know names."""
    names = {ROOT / "hf_optim" / at for at in ("__init__.py", "registry.py", "core/catalogue.py")}
    files: set[Path] = set()
    todo = [file]
    while todo:
        here = todo.pop()
        if here in files | names:
            continue
        files.add(here)
        todo += imported_directly(here.read_text(encoding="utf-8"))
    return files


@cache
def imported_directly(text: str) -> tuple[Path, ...]:
    """The files of the package that a source text imports."""
    files: list[Path] = []
    for node in ast.walk(code(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_optim"):
            for name in (node.module or "", *(f"{node.module}.{a.name}" for a in node.names)):
                at = ROOT / name.replace(".", "/")
                files += [f for f in (at.with_suffix(".py"), at / "__init__.py") if f.is_file()]
    return tuple(files)


def fingerprints() -> dict[str, str]:
    """What a row was made with: the checks ("checks"), and each registered name's code and reference trajectory."""
    sys.path.insert(0, str(ROOT))
    from hf_optim import registry

    suite = [f for f in (ROOT / "hf_optim" / "check").glob("*.py") if f.name not in SHOWING]
    prints, modules = {"checks": fingerprint(*suite)}, registry.classes()
    rows = json.loads(REFERENCES.read_text(encoding="utf-8"))["trajectories"]
    for name in registry.list_optimizers():
        known = [registry.info(name)]
        known += [registry.info(known[0].base["name"])] if known[0].base else []
        paths = [modules[entry.cls.rsplit(".", 1)[1]][0].replace(".", "/") + ".py" for entry in known]
        files = set().union(*(imported(ROOT / path) for path in paths))
        prints[name] = fingerprint(*files, extra=json.dumps(rows.get(name)))
    return prints


def sections() -> dict[str, list[str]]:
    """Title -> names, of each table; a foreign one's title is its module."""
    from hf_optim.check.candidate import expand

    foreign = {module: [f"{module}:{n}" for n in classes] for module, classes in FOREIGN.items()}
    return {"This library": expand(["*"]), "torch.optim": expand(["torch.optim:*"]), **foreign}


def build_references() -> None:
    """Run every twin over the reference problem and write down where it comes by."""
    sys.path.insert(0, str(ROOT / "tests"))
    import numpy as np
    from twins import DEFAULTS, TWINS, run

    from hf_optim import registry
    from hf_optim.check.candidate import Candidate
    from hf_optim.check.mathematics import MARKS, SHAPES, slope, start

    def f(x: list[Any], t: int) -> tuple[float, list[Any]]:
        loss, grads = slope([a.ravel().tolist() for a in x], t)
        return loss, [np.array(g).reshape(shape) for g, shape in zip(grads, SHAPES, strict=True)]

    trajectories = {}
    for name in registry.list_optimizers():
        if name not in TWINS:
            print(f"{name}: no twin")
            continue
        begin = [np.array(v).reshape(shape) for v, shape in zip(start(), SHAPES, strict=True)]
        own = {k: v for k, v in registry.info(name).defaults.items() if k in DEFAULTS[name]}
        steps = run(name, begin, f, max(MARKS), None, **{**own, **Candidate(name).hyper})
        trajectories[name] = {str(t): [a.ravel().tolist() for a in steps[t - 1][0]] for t in MARKS}
    lines = ",\n".join(f'  "{name}": {json.dumps(rows)}' for name, rows in trajectories.items())
    REFERENCES.write_text(
        '{"problem": "hf_optim.check.mathematics: start, slope", "source": "tests/twins, NumPy '
        f'float64",\n "trajectories": {{\n{lines}\n}}}}\n',
        encoding="utf-8",
    )
    print(f"{len(trajectories)} trajectories in {REFERENCES.relative_to(ROOT)}")


def main() -> int:
    """Build what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="run every row again")
    parser.add_argument("--ours", action="store_true", help="keep the rows of other packages as they are")
    parser.add_argument("--references", action="store_true", help="write the reference trajectories instead")
    options = parser.parse_args()
    if options.references:
        sys.path.insert(0, str(ROOT))
        build_references()
        return 0
    # before torch is imported, here and in the two processes: heavyball compiles for minutes what runs in no time
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    marks, tables = fingerprints(), sections()
    from hf_optim.check.outcome import Report
    from hf_optim.check.show import page
    from hf_optim.check.suite import registered, run
    from hf_optim.commands.check import Bar

    old = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() and not options.all else {}
    before, reports, missing = old.get("fingerprints", {}), {}, []
    whole = before.get("checks") != marks["checks"]
    for title, names in tables.items():
        kept = Report.from_dict(old["tables"][title]) if title in old.get("tables", {}) else None
        foreign = title != "This library"
        absent = foreign and find_spec(title.split(".")[0]) is None
        if foreign and (options.ours or absent):
            if kept is not None:
                reports[title] = kept
            else:
                missing.append(title.split(".")[0])
            continue
        have = set(kept.names) if kept is not None else set()
        stale = [n for n in names if n not in have or whole or (not foreign and before.get(n) != marks[n])]
        with Bar(title) as bar:
            new = run(stale, hyper=HYPER, progress=bar.advance) if stale else None
        report = Report(names, list(registered()), environment=(new or kept).environment)  # type: ignore[union-attr]
        for part in (kept, new):
            if part is not None:
                report.hyper.update({k: v for k, v in part.hyper.items() if k in names})
                report.cells.update({k: c for k, c in part.cells.items() if k[0] in names and k[1] in report.checks})
        report.seconds = round(sum(c.seconds for c in report.cells.values()), 1)
        reports[title] = report
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(
        json.dumps(
            {"fingerprints": marks, "missing": missing, "tables": {t: r.to_dict() for t, r in reports.items()}},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        + "\n",
        encoding="utf-8",
    )
    PAGE.write_text(page(reports, registered(), missing), encoding="utf-8")
    for title, report in reports.items():
        unmade = f", {len(report.unmade)} could not be made" if report.unmade else ""
        print(f"{title}: {len(report.names)} optimizers, {len(report.failed)} failed cells{unmade}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
