"""The one argument parser of the commands: what is wrong is one line, like every other mistake of a user."""

from __future__ import annotations

import argparse
from typing import NoReturn

from hf_optim.errors import UserError


class Parser(argparse.ArgumentParser):
    """Options are never abbreviated; a mistake is a `UserError` that names the help to read."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
