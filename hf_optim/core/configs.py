"""Where the configurations that come with the package lie: studies and claims."""

from __future__ import annotations

from pathlib import Path


def folder(kind: str) -> Path:
    """The folder "studies" or "claims": in the installed package, or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs" / kind
    return installed if installed.is_dir() else package.parent / "configs" / kind


def shipped(kind: str) -> dict[str, Path]:
    """Its YAML files, by name."""
    return {path.stem: path for path in sorted(folder(kind).glob("*.yaml"))}
