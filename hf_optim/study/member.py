"""One of the processes that train one run together: `torchrun -m hf_optim.study.member '{"spec": ..., ...}'`."""

from __future__ import annotations

import json
import sys

from hf_optim.study.worker import end_with_parent


def main() -> None:
    """Trains the run that the one argument describes; the first process writes the record."""
    # Whoever holds the run's lock may be killed; then nobody may go on writing.
    end_with_parent()
    from hf_optim.task import RunSpec, train

    how = json.loads(sys.argv[1])
    every = how["checkpoint_every"]
    train(RunSpec.from_dict(how["spec"]), how["home"], progress=False, checkpoint_every=every, resume=every is not None)


if __name__ == "__main__":
    main()
