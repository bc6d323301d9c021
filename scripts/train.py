"""One run of a task: `python scripts/train.py --task vision --optimizer smaran --optimizer.gamma 0.9 --output
runs/first`.

The same as `hf-optim train`, as a file that `torchrun --nproc_per_node 2` and `accelerate launch` can start.
"""

import sys

from hf_optim.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
