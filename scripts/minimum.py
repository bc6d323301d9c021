"""Prints the lowest versions that pyproject.toml allows to some extras, as constraints for pip: a job tries just those.

    python scripts/minimum.py study,slurm,vision > minimum.txt
    python -m pip install -c minimum.txt "torchvision==0.21.0" -e ".[study,slurm,vision]" pytest hypothesis statsmodels
    python -m pytest tests/test_study_*.py        what the tests alone need is at its newest

Where two of the extras name a package, the higher of their lowest versions counts. What the packages themselves depend
on is the newest that they accept; a lowest version that does not go with the others is refused by pip.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def minimums(project: dict, extras: list[str]) -> dict[str, Version]:
    """The lowest version of each package that a [project] table names for `extras`, and for what they contain."""
    waiting, seen = [*project["dependencies"], f"{project['name']}[{','.join(extras)}]"], set()
    lowest: dict[str, Version] = {}
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(project["name"]):
            waiting += [line for extra in requirement.extras - seen for line in project["optional-dependencies"][extra]]
            seen |= requirement.extras
            continue
        bounds = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
        if len(bounds) != 1:
            raise SystemExit(f"error: {requirement} in {PYPROJECT.name} does not say from which version on")
        lowest[name] = max(bounds[0], lowest.get(name, bounds[0]))
    return lowest


def main() -> int:
    """Print them; gives 0."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(project["optional-dependencies"])
    parser.add_argument("extras", help=f"with commas between them, of {known}")
    extras = parser.parse_args().extras.split(",")
    if unknown := sorted(set(extras) - set(project["optional-dependencies"])):
        parser.error(f"there is no extra {unknown[0]}; there are {known}")
    for name, version in sorted(minimums(project, extras).items()):
        print(f"{name}=={version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
