"""The command `hf-optim info`, from the registry alone: torch is never imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hf_optim import registry
from hf_optim.commands.parser import Parser

ABOUT = "an optimizer's algorithm, defaults and source"


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is known of one name; gives 0."""
    parser = Parser("hf-optim info", "Prints an optimizer's algorithm, its defaults and its source.")
    parser.add_argument("name", help="an optimizer's name, as `hf-optim list` shows it")
    return info(parser.parse_args(sys.argv[1:] if argv is None else argv).name)


def info(name: str) -> int:
    """Prints what there is to know about one optimizer. Raises UserError with the closest names if it is unknown."""
    about = registry.info(name)
    int8 = "" if about.int8_bytes is None else f", {about.int8_bytes:.2f} with state_dtype='int8'"
    pairs = [
        ("class", about.cls),
        ("family", about.family),
        ("needs", ", ".join(sorted(about.needs)) or "nothing beyond gradients"),
        ("source", about.paper or "–"),
        ("state", f"{about.state_bytes:g} bytes a parameter (fp32){int8}"),
        ("defaults", ", ".join(f"{k}={_value(v)}" for k, v in about.defaults.items()) or "–"),
        ("search space", ", ".join(f"{k}: {_value(v)}" for k, v in about.search_space.items()) or "–"),
    ]
    print(name)
    for key, value in pairs:
        print(f"  {key + ':':14s}{value}")
    if about.doc:
        print("\n" + about.doc)
    return 0


def _value(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
