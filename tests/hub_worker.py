"""Trains the cases of test_hub_distributed.py; started alone or by torchrun, and writes what it found to a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hub_parts import LINE_SEARCH, Careless, Honest, Tiny, data, make, rows, weights
from transformers import Trainer, TrainerCallback

import hf_optim

#: name -> (model, optimizer, hyper-parameters)
CASES = {
    "smaran": (Honest, "smaran", {"lr": 0.05}),
    "repaired": (Careless, "smaran", {"lr": 0.05}),
    "tlr": (Tiny, "tlr", {"base": {"name": "sgd", "lr": 0.1}, "interval": 2}),
    "search": (Tiny, LINE_SEARCH, {}),
    "closure": (Honest, "torch.optim:LBFGS", {"lr": 0.3, "max_iter": 2}),
}


def run(folder: Path, world: int) -> dict[str, dict[str, list[float]]]:
    """Every case with batches of 4 x 2 accumulated x 1 or 2 processes, always 16 samples a step (the last 12 or so)."""
    results = {}
    for case, (model, name, hyper) in CASES.items():
        trainer = make(folder / case, model, n=56, num_train_epochs=2, gradient_accumulation_steps=4 // world)
        assert trainer.accelerator.num_processes == trainer.args.world_size == world
        attachment = hf_optim.attach(trainer, name, **hyper)
        fed: list[float] = []

        class Watch(TrainerCallback):
            def on_pre_optimizer_step(self, *args, fed=fed, attachment=attachment, **kwargs):
                if attachment.feed is not None:
                    fed.append(float(attachment.feed.fed))

        trainer.add_callback(Watch())
        trainer.train()
        search = getattr(attachment.optimizer, "pairs", [])
        results[case] = {
            "fed": fed,
            "weights": weights(trainer).tolist(),
            "rates": [row["effective_lr"] for row in rows(trainer)],
            "norms": [row["grad_norm"] for row in rows(trainer)],
            "replay": [abs(a - b) for a, b in search],
        }
    results["session"] = session(world)
    results["weighted loss"] = weighted(folder, world)
    results["local"] = {"refused": local(world)}
    return results


class WeightedLoss(Trainer):
    """A loss with weights beside the model, which DDP does not know; begun differently in each process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(self.args.process_index)
            self.loss = torch.nn.Linear(3, 3)

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> Any:
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        both = [*self.model.parameters(), *self.loss.parameters()]
        return cls, {**kwargs, "optimizer_dict": [{"params": both, "weight_decay": args.weight_decay}]}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return torch.nn.functional.cross_entropy(self.loss(model(inputs["x"])["logits"]), inputs["labels"])


def weighted(folder: Path, world: int) -> dict[str, list[float]]:
    """The model's weights and the loss's, by a loss-aware rule."""
    trainer = make(folder / "weighted", n=48, trainer=WeightedLoss, gradient_accumulation_steps=4 // world)
    hf_optim.attach(trainer, "smaran", lr=0.05)
    trainer.train()
    rates = [row["effective_lr"] for row in rows(trainer)]
    return {"rates": rates, "weights": [*weights(trainer).tolist(), *weights(trainer.loss).tolist()]}


def local(world: int) -> list[float]:
    """Under Accelerate's LocalSGD: for each rule whether its step was refused."""
    from accelerate import Accelerator
    from accelerate.local_sgd import LocalSGD
    from accelerate.state import GradientState
    from hub_parts import TinyConfig

    refused, batch = [], torch.utils.data.default_collate(data(4))
    for name in ("smaran", "sls", "adan"):
        GradientState._reset_state()
        accelerator = Accelerator(cpu=True)
        model = Tiny(TinyConfig())
        model, optimizer = accelerator.prepare(model, hf_optim.create(name, model))
        own = hf_optim.Session(accelerator, optimizer, steps_per_epoch=4)
        own.loss(lambda model=model: model(**batch)["loss"])
        own.step()
        with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=2) as averaging:
            try:
                own.loss(lambda model=model: model(**batch)["loss"])
                own.step()
                refused.append(0.0)
            except hf_optim.UserError as error:
                assert "LocalSGD" in str(error)
                refused.append(1.0)
            averaging.step()
    return refused


def session(world: int) -> dict[str, list[float]]:
    """A plain loop, 16 samples a step."""
    from accelerate import Accelerator
    from accelerate.state import GradientState
    from hub_parts import TinyConfig

    GradientState._reset_state()
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4 // world)
    assert accelerator.num_processes == world
    model = Tiny(TinyConfig())
    optimizer = hf_optim.create("smaran", model)
    loader = torch.utils.data.DataLoader(data(48), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    own = hf_optim.Session(accelerator, optimizer)
    model.train()
    figures = []
    for batch in loader:
        with accelerator.accumulate(model):
            own.loss(lambda batch=batch: model(**batch)["loss"])
            if own.step():
                figures.append(own.figures()["effective_lr"])
    return {"rates": figures, "weights": weights(accelerator.unwrap_model(model)).tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    results = run(target, int(sys.argv[2]))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    (target / f"rank{rank}.json").write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
