"""What states and parameters of fewer bits cost in convergence: an MLP on the embedded digits, over seeds.

    python scripts/benchmark_precision.py --optimizer adamw_agr --lr 1e-3 --seeds 5

Five runs a seed, with the same start and batches: all in float32; states in bfloat16 or in 8 bits (both rounded
stochastically); parameters in bfloat16, rounded to the nearest; and both in bfloat16, with compensated parameters.
Each line gives the mean cross-entropy of the whole train split and of the test split after the last epoch, and the
paired difference to float32 with the 95 % t-interval over seeds. Bytes are of parameters and states, a parameter.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hf_optim
from hf_optim.study.statistics.paired import summarise
from hf_optim.tasks.data.images import read

DIGITS = Path(__file__).parent.parent / "tasks" / "data" / "digits"
#: label -> dtype of the parameters, state_dtype
WAYS: dict[str, tuple[torch.dtype, str | None]] = {
    "float32": (torch.float32, None),
    "bf16 states": (torch.float32, "bf16"),
    "int8 states": (torch.float32, "int8"),
    "bf16 parameters": (torch.bfloat16, None),
    "bf16 parameters and states": (torch.bfloat16, "bf16"),
}


def pictures() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of the splits train and test: images as rows in [0, 1], and their labels."""
    splits = read(DIGITS)
    return {
        name: (part.pixels.flatten(1).float() / 255, part.labels.long())  # type: ignore[union-attr]
        for name, part in (("train", splits.train), ("test", splits.test))
    }


def run(
    way: str,
    name: str,
    hyper: dict[str, Any],
    seed: int,
    epochs: int,
    batch: int,
    data: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, float]:
    """Train once; the losses at the end and the bytes."""
    dtype, state_dtype = WAYS[way]
    torch.manual_seed(seed)
    x, y = data["train"]
    model = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    model = model.to(dtype)
    opt = hf_optim.create(name, model, state_dtype=state_dtype, **hyper)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(batch):
            loss = nn.functional.cross_entropy(model(x[rows].to(dtype)).float(), y[rows])
            opt.zero_grad()
            loss.backward()
            opt.step(loss=loss)  # type: ignore[call-arg]
    with torch.no_grad():
        ends = {s: float(nn.functional.cross_entropy(model(a.to(dtype)).float(), b)) for s, (a, b) in data.items()}
    kept = list(model.parameters())
    kept += [v for p in model.parameters() for k, v in opt.state[p].items() if k != "step"]
    return {**ends, "bytes": sum(t.nbytes for t in kept) / sum(p.numel() for p in model.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="adamw_agr", help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write all numbers there, too")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be at least 2: an interval needs them")
    data = pictures()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in range(given.seeds):
        for way in WAYS:
            found[way].append(run(way, given.optimizer, {"lr": given.lr}, seed, given.epochs, given.batch, data))
    print(f"{given.optimizer}, lr {given.lr:g}, {given.epochs} epochs, {given.seeds} seeds\n")
    print("| | bytes | train loss | - float32 | test loss | - float32 |")
    print("|---|---|---|---|---|---|")
    for way, runs in found.items():
        cells = [way, f"{runs[0]['bytes']:.0f}"]
        for split in data:
            cells.append(f"{statistics.mean(r[split] for r in runs):.4f}")
            d = summarise([r[split] - f[split] for r, f in zip(runs, found["float32"], strict=True)])
            cells.append("" if way == "float32" else f"{d.mean:+.4f} ± {d.high - d.mean:.4f}")
        print(f"| {' | '.join(cells)} |")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
