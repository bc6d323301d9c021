"""What `attach` costs: an attached rule against Trainer's own optimizer, in one process, in turns.

    python scripts/benchmark_trainer.py                          attached adamw against adamw_torch_fused
    python scripts/benchmark_trainer.py --optimizer smaran       what a loss-aware rule costs

Each round trains the same model on the same batches twice, in an order that alternates, and gives one ratio of
median step times; the quartiles over rounds are printed. A ratio of 1.01 is one per cent slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SIZES = {"tiny": (64, 2, 2, 32), "small": (256, 4, 4, 64)}  # width, layers, heads, tokens


def run(size: str, optimizer: str | None, steps: int, batch: int, folder: str) -> float:
    """Median milliseconds of a step, the first fifth of them left out; None is Trainer's own fused AdamW."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_callback import PrinterCallback

    import hf_optim

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ms: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ms.append(1000 * (time.perf_counter() - self.start))

    width, layers, heads, tokens = SIZES[size]
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=1000, n_positions=tokens, n_embd=width, n_layer=layers, n_head=heads))
    text = torch.randint(1000, (steps * batch, tokens), generator=torch.Generator().manual_seed(0))
    clock = Clock()
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=batch, max_steps=steps, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="no", learning_rate=1e-4, weight_decay=0.01, optim="adamw_torch_fused",
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": t, "labels": t} for t in text], callbacks=[clock])
    if optimizer is not None:
        hf_optim.attach(trainer, optimizer, **({"lr": 1e-4} if optimizer.startswith("adam") else {}))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return statistics.median(clock.ms[steps // 5 :])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="adamw", help="the attached rule (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps a run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write all numbers there, too")
    given = parser.parse_args()
    if min(given.rounds, given.batch) < 1 or given.rounds < 3 or given.steps < 10:
        parser.error("--rounds must be at least 3, --steps at least 10, --batch at least 1")
    import logging

    logging.getLogger("hf_optim").setLevel(logging.ERROR)
    pairs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run(given.size, None, 10, given.batch, folder)  # warms caches up
        for i in range(given.rounds):
            order: list[str | None] = [None, given.optimizer]
            took = {o: run(given.size, o, given.steps, given.batch, folder) for o in (order if i % 2 else order[::-1])}
            pairs.append((took[None], took[given.optimizer]))
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    stock, attached = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"adamw_torch_fused {stock:.2f} ms a step, attached {given.optimizer} {attached:.2f} ms")
    print(f"ratio {middle:.4f} (quartiles {low:.4f} to {high:.4f}, {given.rounds} rounds of {given.steps} steps)")
    if given.json:
        found = {"ratio": middle, "quartiles": [low, high], "pairs_ms": pairs, "size": given.size, "steps": given.steps}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
