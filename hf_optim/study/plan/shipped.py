"""Finds a study by what the command line names: a file, a folder, or one that comes with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hf_optim.core import configs
from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.experiment.files import read_text

if TYPE_CHECKING:
    from hf_optim.study.plan.source import Source


def find(name_or_file: str) -> tuple[Source, str]:
    """The study that `name_or_file` means: the name of a shipped study, a study's folder, or a YAML file (`./NAME`
    where ours is called so, too: who asks for ours gets nothing that lies in the current folder).

    Returns its source and the name it was found by. Raises UserError listing the shipped studies.
    """
    from hf_optim.study.plan.source import read  # PyYAML, which listing the studies does not need

    path = Path(name_or_file)
    shipped = shipped_studies()
    if name_or_file in shipped:
        return read(shipped[name_or_file], f"{name_or_file}.yaml"), name_or_file
    if path.is_dir() and os.path.lexists(path / "study.yaml"):
        return stored(path), name_or_file
    if path.is_file():
        return read(path), name_or_file
    raise UserError(
        f"no study {name_or_file!r}{closest(name_or_file, shipped)}: give a YAML file, a study's folder, "
        f"or a shipped study: {', '.join(shipped)}"
    )


def folder_of(name: str) -> Path | None:
    """The study's folder that `name` means, if it means one."""
    return Path(name) if name not in shipped_studies() and Path(name, "study.yaml").is_file() else None


def stored(folder: Path) -> Source:
    """The study.yaml of a study's folder."""
    from hf_optim.study.plan.source import parse

    file = folder / "study.yaml"
    try:
        return parse(read_text(folder, file.name), str(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a UTF-8 text file (byte {error.start})") from None


def shipped_studies() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    return configs.shipped("studies")
