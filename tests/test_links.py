"""Every local link of the documents leads somewhere, and one that does not is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


links = load("check_links")


def test_no_link_is_broken():
    assert links.broken() == []


def test_broken_links_are_named(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b.md").write_text("# A `b` heading, here\n")
    (tmp_path / "README.md").write_text(
        "# Top\n[a](docs/b.md) [b](docs/b.md#a-b-heading-here) [c](#top) [d](gone.md) [e](docs/b.md#no) [f](#no)\n"
        "[g](https://example.org/gone) `[h](gone)`\n```\n[i](gone)\n```\n"
    )
    told = [line.split(": ")[1] for line in links.broken(tmp_path)]
    assert told == ["gone.md", "docs/b.md#no", "#no"]
