"""docs/api is what the docstrings say today, and what a page names can be imported."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_api", ROOT / "scripts" / "build_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api = load()


def test_the_pages_are_up_to_date_and_stale_ones_are_noticed(tmp_path: Path) -> None:
    assert api.stale() == [], "run python scripts/build_api.py"
    for name, text in api.pages().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "hub.md").write_text("x", encoding="utf-8")
    (tmp_path / "gone.md").write_text("", encoding="utf-8")
    (tmp_path / "check.md").unlink()
    assert api.stale(tmp_path) == ["check.md", "gone.md", "hub.md"]


@pytest.mark.parametrize("title", api.PAGES)
def test_a_page_has_every_public_name_with_its_arguments(title: str) -> None:
    page = (ROOT / "docs" / "api" / f"{title}.md").read_text(encoding="utf-8")
    for place in api.PAGES[title][1]:
        module, _, name = place.partition(":")
        for each in api.public(module) if name == "*" else [name]:
            member = getattr(importlib.import_module(module), each)
            first = (member.__doc__ or "").strip().splitlines()[0]
            assert f"## {each}\n" in page and first in page
    if title == "hub":
        import hf_optim.hub

        assert {place.partition(":")[2] for place in api.PAGES[title][1]} == set(hf_optim.hub.__all__)
