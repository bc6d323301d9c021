"""What the attacks of a stranger's files share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_optim.commands.main import main
from hf_optim.core import configs
from hf_optim.experiment.spec import RunSpec

SPEC = RunSpec("vision", "mlp", "smoke", {"name": "adamw", "lr": 1e-3}, overrides={"steps": 4, "eval_every": 4})
CLAIM = yaml.safe_load((configs.folder("claims") / "agr-theorem41.yaml").read_text())


class Code:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def claim(folder: Path, **changes: Any) -> Path:
    """A claim file in `folder`, judged on tables."""
    (folder / "claim.yaml").write_text(yaml.safe_dump({**CLAIM, **changes}))
    return folder / "claim.yaml"


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, which may say one line of what is wrong, and no traceback."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.count("\n") <= 1, err
    return code, out, err


def interrupted_run(place: Path) -> Path:
    """The folder of a run of `SPEC` with one checkpoint, of step 2."""
    from hf_optim.experiment.training import train

    folder = place / SPEC.id
    assert train(SPEC, folder, progress=False, checkpoint_every=2)["status"] == "ok"
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "record.json").unlink()
    return folder
