"""What the attacks of a stranger's files share."""

from __future__ import annotations

import pytest

from hf_optim.commands.main import main


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, which may say one line of what is wrong, and no traceback."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.count("\n") <= 1, err
    return code, out, err
