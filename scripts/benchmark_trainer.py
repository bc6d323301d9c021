"""What `attach` costs: an attached rule against Trainer's own optimizer, in one process, in turns.

    python scripts/benchmark_trainer.py                          attached adamw against adamw_torch_fused
    python scripts/benchmark_trainer.py --optimizer smaran       what a loss-aware rule costs
    python scripts/benchmark_trainer.py --losses                 how far the attached adamw's losses are from stock's

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


def run(
    given: argparse.Namespace, optimizer: str | None, steps: int, folder: str, stock: str = "adamw_torch_fused"
) -> tuple[float, list[float]]:
    """Median milliseconds of a step, the first fifth of them left out, and the losses, if those are asked for; None is
    Trainer's own `stock`."""
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

    (width, layers, heads, tokens), batch = SIZES[given.size], given.batch
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=1000, n_positions=tokens, n_embd=width, n_layer=layers, n_head=heads))
    text = torch.randint(1000, (steps * batch, tokens), generator=torch.Generator().manual_seed(0))
    clock = Clock()
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=batch, max_steps=steps, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="steps" if given.losses else "no", logging_steps=1, learning_rate=1e-4, weight_decay=0.01,
        optim=stock, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": t, "labels": t} for t in text], callbacks=[clock])
    if optimizer is not None:
        hf_optim.attach(trainer, optimizer, **({"lr": 1e-4} if optimizer.startswith("adam") else {}))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return statistics.median(clock.ms[steps // 5 :]), losses


def compare_losses(given: argparse.Namespace) -> None:
    """Print the largest relative difference of a step's loss from those of torch's two AdamWs."""
    with tempfile.TemporaryDirectory() as folder:
        _, losses = run(given, given.optimizer, given.steps, folder)
        for stock in ("adamw_torch", "adamw_torch_fused"):
            _, wanted = run(given, None, given.steps, folder, stock)
            gap = max(abs(a - b) / b for a, b in zip(losses, wanted, strict=True))
            print(f"{stock}: losses {wanted[0]:.4f} to {wanted[-1]:.4f}, attached {given.optimizer} within {gap:.2g}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="adamw", help="the attached rule (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps a run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--losses", action="store_true", help="compare losses instead of times, over --steps steps")
    parser.add_argument("--json", type=Path, help="write all numbers there, too")
    given = parser.parse_args()
    if min(given.rounds, given.batch) < 1 or given.rounds < 3 or given.steps < 10:
        parser.error("--rounds must be at least 3, --steps at least 10, --batch at least 1")
    import logging

    logging.getLogger("hf_optim").setLevel(logging.ERROR)
    pairs: list[tuple[float, float]] = []
    if given.losses:
        compare_losses(given)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run(given, None, 10, folder)  # warms caches up
        for i in range(given.rounds):
            order: list[str | None] = [None, given.optimizer]
            turns = order if i % 2 else order[::-1]
            took = {o: run(given, o, given.steps, folder)[0] for o in turns}
            pairs.append((took[None], took[given.optimizer]))
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    stock, attached = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"adamw_torch_fused {stock:.2f} ms a step, attached {given.optimizer} {attached:.2f} ms")
    print(f"ratio {middle:.4f} (quartiles {low:.4f} to {high:.4f}, {given.rounds} rounds of {given.steps} steps)")
    if given.json:
        report = {
            "ratio": middle,
            "quartiles": [low, high],
            "pairs_ms": pairs,
            "size": given.size,
            "steps": given.steps,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
