"""500 examples of everything a training loop may hand to a rule, for every rule: kernels against the rule as written.

python scripts/fuzz_engine.py [rule ...] [--examples 500]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    """Print a line a rule; the first difference is an error."""
    from contract import OURS
    from fuzz import fuzz

    import hf_optim

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", default=[n for n in OURS if "evaluate" not in hf_optim.info(n).needs])
    parser.add_argument("--examples", type=int, default=500)
    given = parser.parse_args()
    for name in given.rules:
        fuzz(name, given.examples)
        print(f"{name}: {given.examples} examples agree", flush=True)


if __name__ == "__main__":
    main()
