"""One of the processes that train one run together: `torchrun -m hf_optim.study.launch.member '{"home": ..., ...}'`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from hf_optim.core import importing
from hf_optim.errors import DamagedCheckpoint
from hf_optim.experiment.disk import Unwritable
from hf_optim.study.launch.messages import Request
from hf_optim.study.launch.worker import CHECKPOINT, DISK, end_with_parent, train_stored, write_failure


def main() -> None:
    """Trains the run that the one argument describes; the first process writes the record."""
    how = json.loads(sys.argv[1])
    # The worker holds the run's lock. When it is killed, torchrun is, and then nobody may go on writing.
    end_with_parent()
    if sys.platform == "linux" and _parent(os.getppid()) != how["worker"]:
        raise SystemExit("the worker was gone before this process had begun")
    home, request, started = Path(how["home"]), Request.from_dict(how["request"]), time.time()
    try:
        train_stored(home, request)
    except (Unwritable, DamagedCheckpoint) as error:  # torchrun's exit code says nothing of it
        fault = DISK if isinstance(error, Unwritable) else CHECKPOINT
        write_failure(home, request.id, request.spec, str(error), started, fault)
        raise


def _parent(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return None


if __name__ in ("__main__", "__mp_main__"):  # the second in processes that multiprocessing starts for this one
    importing.ignore_current_folder()
if __name__ == "__main__":
    main()
