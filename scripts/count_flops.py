"""Counts the multiplications and additions of a forward pass of every preset that a claim's study uses, for
`configs/claims/flops.json`, from which `hf-optim reproduce` says beforehand what a study costs.

Image models are built on torch's meta device and counted by torch's own FLOP counter. Language models take two
operations a parameter and token, embeddings left out. Nothing is downloaded: sizes of the data are those of the papers.

    python scripts/count_flops.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_optim.claims import claim
from hf_optim.experiment.task import Data, load
from hf_optim.study.plan import plan

FILE = Path(__file__).resolve().parent.parent / "configs" / "claims" / "flops.json"
#: train samples before any are held out, shape, classes
IMAGES: dict[str, tuple[int, tuple[int, int, int], int]] = {
    "digits": (3500, (1, 28, 28), 10),
    "emoji": (2112, (3, 32, 32), 9),
    "emoji-fine": (2112, (3, 32, 32), 98),
    "mnist": (60_000, (1, 28, 28), 10),
    "cifar10": (50_000, (3, 32, 32), 10),
    "cifar100": (50_000, (3, 32, 32), 100),
    "tiny-imagenet": (100_000, (3, 64, 64), 200),
    "imagenet": (1_281_167, (3, 224, 224), 1000),
}
#: train samples, operations of a forward pass of one: 2 x parameters of the layers x tokens
LANGUAGE = {
    "albert/albert small": (6_600, 2 * 3 * 0.2e6 * 64),
    "albert/albert paper": (30_000, 2 * 12 * 7.1e6 * 128),
    "lm/lstm small": (3_900, 2 * 0.3e6 * 64),
    "lm/lstm paper": (25_800, 2 * (4 * 2 * 650 * 1300 + 10_000 * 650) * 36),
    "translation/transformer small": (24_723, 2 * 1.2e6 * 20),
    "translation/transformer paper": (29_000, 2 * 14e6 * 16),
}


def forward(task: str, model: str, size: str, data: str | None, options: dict[str, Any]) -> tuple[int, float]:
    """(train samples, operations of one sample's forward pass)."""
    chosen = load(task)
    preset = chosen.with_options(model, chosen.preset(model, size), options)
    samples, shape, classes = IMAGES[data or preset.data.value]
    samples -= preset.validation.value
    facts: dict[str, Any] = {"shape": shape, "classes": [str(i) for i in range(classes)]}
    values = preset.model.value
    if values.get("image_size"):
        facts["shape"] = (shape[0], values["image_size"], values["image_size"])
    if task == "ddpm":
        facts = {"image_channels": shape[0], "settings": values}
        side = values["resolution"]
        shape = (shape[0], side, side)
    empty: Any = None
    with torch.device("meta"):
        network = chosen.model(model, preset, Data(empty, empty, empty, "", "", "", facts)).eval()
        pixels = torch.zeros(2, *(shape if task == "ddpm" else facts["shape"]))
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            if task == "ddpm":
                network.unet(pixels, torch.zeros(2, dtype=torch.long))
            else:
                network(pixel_values=pixels)
    return samples, counter.get_total_flops() / 2


def main() -> None:
    """Every task of every study of the claims."""
    counts: dict[str, list[float]] = {}
    for name in claim.names():
        for setting in claim.load(name).settings.values():
            if setting.study is None:
                continue
            for task in plan.expand(setting.study).tasks:
                key = f"{task['task']}/{task['model']} {task['size']}{' ' + task['data'] if task['data'] else ''}"
                if key in LANGUAGE:
                    counts[key] = list(LANGUAGE[key])
                elif key not in counts:
                    counts[key] = list(
                        forward(task["task"], task["model"], task["size"], task["data"], task.get("options") or {})
                    )
                    print(key, counts[key])
    rows = ",\n".join(f" {json.dumps(key)}: [{int(n)}, {ops:.4g}]" for key, (n, ops) in sorted(counts.items()))
    FILE.write_text("{\n" + rows + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
