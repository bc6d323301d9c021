"""A hook of MkDocs (scripts/mkdocs.yml): CHANGELOG.md and CONTRIBUTING.md, beside docs/, as pages of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages, their links turned to where pages of docs/ lie in the site."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name.lower(), content=re.sub(r"\]\(docs/", "](", text)))
    return files
