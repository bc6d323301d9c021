"""Turns the tags of the actions in .github/workflows into the commits that they name today.

python scripts/pin_actions.py           writes `uses: owner/name@COMMIT # TAG`; needs a network
python scripts/pin_actions.py --check   lists what is not pinned; exit code 1 if anything is not
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".github" / "workflows"
USES = re.compile(r"uses: ([\w.-]+/[\w.-]+)@(\S+)(?: # (\S+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(action: str, tag: str) -> str:
    """The commit of a tag or branch; of an annotated tag, the commit that it points to."""
    address = f"https://github.com/{action}"
    command = ["git", "ls-remote", address, f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}", f"refs/heads/{tag}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    if done.returncode or not lines:
        raise SystemExit(f"error: {action}@{tag} cannot be looked up: no network, or no such tag")
    return next((commit for commit, ref in lines if ref.endswith("^{}")), lines[0][0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="look only")
    check = parser.parse_args().check
    loose = 0
    for file in sorted(FOLDER.glob("*.yml")):
        text = file.read_text(encoding="utf-8")
        for action, ref, tag in set(USES.findall(text)):
            if check and not COMMIT.fullmatch(ref):
                print(f"{file.name}: {action}@{ref} is a name, which its owner can move")
                loose += 1
            elif not check:
                name = tag or ref
                pinned = f"uses: {action}@{commit_of(action, name)} # {name}"
                text = re.sub(rf"uses: {re.escape(action)}@{re.escape(ref)}(?: # \S+)?", pinned, text)
        if not check:
            file.write_text(text, encoding="utf-8")
    return int(bool(loose))


if __name__ == "__main__":
    raise SystemExit(main())
