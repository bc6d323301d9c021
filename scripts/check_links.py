"""Checks the links of README, CONTRIBUTING, CHANGELOG and docs: every local file and heading that is named is there.

python scripts/check_links.py     one line a broken link; exit code 1 if there is one
"""

from __future__ import annotations

import argparse
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")


def prose(text: str) -> str:
    """Markdown without its code, where brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


@cache
def anchors(file: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them, and those that it writes itself."""
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    ids = set(re.findall(r"(?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.M):
        word = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower())
        ids |= {word.replace(" ", "-"), re.sub(r"[\s-]+", "-", word).strip("-")}
    return frozenset(ids)


def pages(root: Path = ROOT) -> list[Path]:
    """What is checked."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def broken(root: Path = ROOT) -> list[str]:
    """`page: link: why` for every local link that leads nowhere."""
    told = []
    for page in pages(root):
        for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            where = f"{page.relative_to(root)}: {link}"
            if not target.exists():
                told.append(f"{where}: there is no such file")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                told.append(f"{where}: there is no such heading")
    return told


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lines = broken()
    print("\n".join(lines) or f"{len(pages())} pages, no broken link")
    raise SystemExit(bool(lines))
