"""docs/claims.md from configs/claims: every table and figure, what it claims, and the reproductions that were run.

`python scripts/build_claims_docs.py` writes it; `--check` says whether it is what the files give.
"""

import json
import sys
from pathlib import Path

from hf_optim.claims import claim

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "claims.md"
HEAD = """# The papers' tables and figures

Every table and figure of the four papers has a file in `configs/claims`: what it claims, the study that tests it at
size small (data of the package, minutes to an hour on two cores) and at size paper (the paper's setting, for a GPU),
the printed figures and the rule that judges. `hf-optim reproduce NAME` runs one, and shows published beside obtained.

A verdict at size small speaks of the stand-in, not of the paper: *holds*, *partly* (some comparisons decided in favour,
none against), *contradicted*, *undecided*. The reproductions linked below were run here; the others were not.

Made by `scripts/build_claims_docs.py`.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for paper in claim.PAPERS:
        parts.append(f"\n## {paper}\n")
        for name in claim.names():
            one = claim.load(name)
            if one.paper == paper:
                parts.append(_entry(one))
    return "\n".join(parts) + "\n"


def _entry(one: claim.Claim) -> str:
    done = ROOT / "docs" / "reproductions" / f"{one.name}-small"
    verdicts: list[str | None] = [None] * len(one.statements)
    link = ""
    if (done / "reproduction.json").is_file():
        found = json.loads((done / "reproduction.json").read_text(encoding="utf-8"))
        verdicts = [judgement["verdict"] for judgement in found["judgements"]]
        link = f" [Reproduction at size small](reproductions/{done.name}/reproduction.md)."
    elif (done / "reproduction.md").is_file():
        link = f" [What it shows at size small](reproductions/{done.name}/reproduction.md)."
    sizes = ", ".join(one.settings)
    command = f"`hf-optim reproduce {one.name}`; sizes {sizes}.{link}"
    lines = [f"### {one.where}: {one.title}", "", command, ""]
    for statement, verdict in zip(one.statements, verdicts, strict=True):
        lines.append(f"- {statement['text']}" + (f" **{verdict}** at small" if verdict else ""))
    lines += [f"- Note: {note}" for note in one.notes]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text else "docs/claims.md is out of date")
    PAGE.write_text(text, encoding="utf-8")
