"""Real training runs to resample studies from: AdamW and momentum SGD on real digits, a grid of rates by many seeds.

    python scripts/calibration_bank.py        # minutes of one core; writes scripts/calibration_bank.npz

A run is a multilayer perceptron (784-32-10) on the 5,000 embedded digits, 40 steps of 64 samples. A seed decides the
initial weights and the batches, the same for both optimizers and every rate, so that runs of one seed are paired. All
seeds of a rate train side by side as slices of larger tensors: both rules work on each weight alone, so that each slice
is the run that it would be on its own (tests/test_calibration.py compares one).
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FILE = Path(__file__).with_suffix(".npz")

RATES = np.logspace(-4, 0, 25)
SEEDS, STEPS, BATCH, HIDDEN = 64, 40, 64, 32
OPTIMIZERS = ("adamw", "sgdm")


def digits() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Images, (n, 784) in [0, 1], and labels of every split."""
    from hf_optim.experiment.task import load

    task = load("vision")
    data = task.data(task.preset("mlp", "small"), None)
    splits = {}
    for name in ("train", "validation", "test"):
        rows = [getattr(data, name)[i] for i in range(len(getattr(data, name)))]
        images = torch.stack([torch.as_tensor(row["pixel_values"], dtype=torch.float32).flatten() for row in rows])
        splits[name] = images, torch.tensor([int(row["labels"]) for row in rows])
    return splits


def start(seed: int, inputs: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The initial weights of a seed, and its batches as indices, (steps, batch), of `inputs` training samples."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((784, HIDDEN), (HIDDEN,), (HIDDEN, 10), (10,))
    bounds = (784**-0.5, 784**-0.5, HIDDEN**-0.5, HIDDEN**-0.5)
    weights = [(2 * torch.rand(size, generator=generator) - 1) * b for size, b in zip(sizes, bounds, strict=True)]
    return weights, torch.randint(inputs, (STEPS, BATCH), generator=generator)


def logits(weights: list[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """(seeds, batch, 10) of (seeds, batch, 784) images, or of (batch, 784) ones for all seeds."""
    hidden = torch.relu(images @ weights[0] + weights[1][:, None])
    return hidden @ weights[2] + weights[3][:, None]


def train(name: str, rate: float, seeds: list[int], data: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
    """Correct answers on validation and on test of each seed's run, (seeds, 2)."""
    import hf_optim

    begun = [start(seed, len(data["train"][0])) for seed in seeds]
    weights = [torch.stack([w[i] for w, _ in begun]).requires_grad_() for i in range(4)]
    batches = torch.stack([b for _, b in begun])
    rule = hf_optim.AdamW if name == "adamw" else functools.partial(hf_optim.SGD, momentum=0.9)
    optimizer = rule(weights, lr=rate, weight_decay=0.0)
    images, labels = data["train"]
    for step in range(STEPS):
        rows = batches[:, step]
        optimizer.zero_grad()
        out = logits(weights, images[rows])
        # The sum over seeds: each slice has the gradient of its own mean loss.
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), labels[rows].flatten(), reduction="sum") / BATCH
        loss.backward()
        optimizer.step()
    return np.stack([count(weights, *data[split]) for split in ("validation", "test")], axis=1)


def count(weights: list[torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """How many samples each seed's model gets right."""
    with torch.no_grad():
        return (logits(weights, images).argmax(-1) == labels).sum(-1).numpy().astype(np.int16)


def main() -> int:
    """Trains every run and writes the bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    data, seeds, begun = digits(), list(range(SEEDS)), time.process_time()
    bank = np.zeros((len(OPTIMIZERS), len(RATES), SEEDS, 2), np.int16)
    for i, name in enumerate(OPTIMIZERS):
        for j, rate in enumerate(RATES):
            bank[i, j] = train(name, float(rate), seeds, data)
        print(
            f"{name}: {time.process_time() - begun:.0f} s, best mean test {bank[i, :, :, 1].mean(-1).max():.1f}",
            flush=True,
        )
    untrained = [torch.stack([start(seed, len(data["train"][0]))[0][i] for seed in seeds]) for i in range(4)]
    np.savez_compressed(
        FILE,
        counts=bank,
        untrained=count(untrained, *data["validation"]),
        sizes=np.array([len(data["validation"][0]), len(data["test"][0])]),
    )
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
