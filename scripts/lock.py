"""Writes the locked dependencies of the scripts' environment, and audits them. Both need a network, and say so if not.

    python scripts/lock.py            writes scripts/locked/dev.txt and study.txt: each package's version and hashes
    python scripts/lock.py --audit    asks the advisory database about each locked package; exit code 1 for a finding
    python scripts/lock.py --check    whether the locks still satisfy pyproject.toml (exit code 1 if not); no network

The versions are those of this interpreter's environment, so that a lock holds what the tests were run with. The tools
(uv, pip-audit) are installed into an environment of their own, which is thrown away.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "locked"
EXTRAS = ("dev", "study")
TORCH = "torch==2.14.1 torchvision==0.29.1"  # as in environment.sh
HEAD = "# Made by scripts/lock.py for Linux on x86-64: versions, with the hashes of their files.\n"


def tools(folder: Path, *packages: str) -> Path:
    """The folder of the commands of `packages`, in a new environment. Raises SystemExit where they cannot be had."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    bin_folder = folder / ("Scripts" if sys.platform == "win32" else "bin")
    command = [bin_folder / "python", "-m", "pip", "install", "--quiet", "--timeout", "10", "--retries", "0", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"error: {', '.join(packages)} could not be installed in 5 minutes: no network?") from None
    if done.returncode:
        raise SystemExit(f"error: {', '.join(packages)} cannot be installed: no network, or no package index?")
    return bin_folder


def installed() -> str:
    """The versions of this environment, as constraints."""
    versions = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()) if name and name != "hf-optim")


def lock(extra: str, uv: Path, temporary: Path) -> str:
    """The text of an extra's lock."""
    constraints, wanted, out = temporary / "constraints.txt", temporary / "torch.txt", temporary / f"{extra}.txt"
    constraints.write_text(installed() if extra == "dev" else (FOLDER / "dev.txt").read_text())
    wanted.write_text(TORCH.replace(" ", "\n") + "\n")
    version = ".".join(map(str, sys.version_info[:3]))
    command = [uv, "pip", "compile", "pyproject.toml", wanted, "--extra", extra, "--generate-hashes", "--no-header",
               "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--python-platform", "linux",
               "--python-version", version, "--constraint", constraints, "--output-file", out, "--quiet"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {extra} cannot be locked: {' '.join(done.stderr.split())[:400]}")
    return HEAD + out.read_text()


def locked(text: str) -> dict[str, str]:
    """The versions in a lock."""
    return {_name(match[1]): match[2] for match in re.finditer(r"^([\w.-]+)==([^\s;\\]+)", text, re.M)}


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def unsatisfied(extra: str, text: str) -> list[str]:
    """The requirements of an extra that a lock does not satisfy."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions, seen, lines = locked(text), set(), []
    waiting = [*project["dependencies"], f"hf-optim[{extra}]", *TORCH.split()]
    while waiting:
        requirement = Requirement(waiting.pop())
        if _name(requirement.name) == "hf-optim":
            waiting += [r for e in requirement.extras - seen for r in project["optional-dependencies"][e]]
            seen |= requirement.extras
        elif not requirement.specifier.contains(versions.get(_name(requirement.name), "0"), prereleases=True):
            lines.append(f"{requirement} ({versions.get(_name(requirement.name), 'not locked')})")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--audit", action="store_true", help="look for known vulnerabilities instead")
    parser.add_argument("--check", action="store_true", help="compare with pyproject.toml instead")
    given = parser.parse_args()
    if given.check:
        bad = [
            f"{extra}: {problem}"
            for extra in EXTRAS
            for problem in unsatisfied(extra, (FOLDER / f"{extra}.txt").read_text())
        ]
        print("\n".join(bad) or "the locks satisfy pyproject.toml")
        return 1 if bad else 0
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        if given.audit:
            try:
                audit = tools(temporary / "tools", "pip-audit") / "pip-audit"
            except SystemExit as why:  # a machine without a network is no finding
                print(f"not audited: {why}")
                return 0
            done = subprocess.run([audit, "--disable-pip", "--require-hashes", "--progress-spinner", "off", "-r",
                                   FOLDER / "dev.txt"], capture_output=True, text=True)  # fmt: skip
            if "rror" in done.stderr and "vulnerabilit" not in done.stderr:
                print(
                    f"not audited: the advisory database cannot be asked ({done.stderr.strip().splitlines()[-1][:200]})"
                )
                return 0
            print(done.stdout + done.stderr)
            return done.returncode
        uv = tools(temporary / "tools", "uv") / "uv"
        FOLDER.mkdir(exist_ok=True)
        for extra in EXTRAS:
            text = lock(extra, uv, temporary)
            (FOLDER / f"{extra}.txt").write_text(text)
            print(f"{FOLDER / extra}.txt: {len(locked(text))} packages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
