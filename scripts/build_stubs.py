"""Writes hf_optim/__init__.pyi from the registry: what editors and type checkers know of `import hf_optim`.

python scripts/build_stubs.py            write it
python scripts/build_stubs.py --check    write nothing; exit 1 if it is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hf_optim  # noqa: E402
from hf_optim import registry  # noqa: E402

FILE = ROOT / "hf_optim" / "__init__.pyi"
HEAD = "# Made by scripts/build_stubs.py from the registry: do not edit.\n"


def text() -> str:
    """What the file should hold: every public name from where it is defined, in its module's order."""
    homes = {name: module for name, module in hf_optim.FUNCTIONS.items()}
    homes |= {name: module for name, (module, _) in registry.classes().items()}
    modules: dict[str, list[str]] = {}
    for name, module in homes.items():
        modules.setdefault(module, []).append(name)
    lines = [HEAD, *(f"from hf_optim import {name} as {name}\n" for name in hf_optim.PACKAGES)]
    for module in sorted(modules):
        lines += [f"from {module} import {name} as {name}\n" for name in sorted(modules[module])]
    names = "".join(f'    "{name}",\n' for name in sorted(homes))
    return "".join([*lines, "\n__version__: str\n", f"__all__ = [\n{names}]\n"])


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is out of date")
    check = parser.parse_args().check
    old = FILE.read_text(encoding="utf-8") if FILE.exists() else ""
    if check:
        if old != text():
            print(f"{FILE.relative_to(ROOT)} is out of date: run python scripts/build_stubs.py", file=sys.stderr)
        return int(old != text())
    FILE.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
