"""Small models, data and trainers for the tests of the hub."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

transformers_logging.set_verbosity_error()

#: the argument by the name that this release of transformers knows
CHECKPOINTING = "gradient_checkpointing"
if hasattr(TrainingArguments, "activation_checkpointing"):
    CHECKPOINTING = "activation_checkpointing"
LINE_SEARCH = f"{Path(__file__).with_name('hub_line_search.py')}:Armijo"


_imported = 0


def spare_imports() -> None:
    """Trainer collects garbage whenever it begins: most of a short run's time, unless imported modules are left out."""
    global _imported
    if len(sys.modules) != _imported:
        _imported = len(sys.modules)
        gc.freeze()


class TinyConfig(PretrainedConfig):
    model_type = "hub-tiny"

    def __init__(self, dropout: float = 0.0, norm: bool = False, **kwargs: Any) -> None:
        self.dropout = dropout
        self.norm = norm
        super().__init__(**kwargs)


class Tiny(PreTrainedModel):
    """Two layers; its forward takes no **kwargs, so Trainer divides the loss by the accumulation itself."""

    config_class = TinyConfig
    main_input_name = "x"

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16) if config.norm else nn.LayerNorm(16)
        self.dropout = nn.Dropout(config.dropout)
        self.last = nn.Linear(16, 3)
        self.seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self.post_init()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)))))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.training and torch.is_grad_enabled():
            self.seen.append((x, labels))
        return self._output(x, labels, None)

    def _output(self, x: torch.Tensor, labels: torch.Tensor | None, items: Any) -> dict[str, torch.Tensor]:
        logits = self.logits(x)
        if labels is None:
            return {"logits": logits}
        loss = functional.cross_entropy(logits, labels, reduction="mean" if items is None else "sum")
        return {"loss": loss if items is None else loss / items, "logits": logits}


class Honest(Tiny):
    """Normalises by `num_items_in_batch`, as it should."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        if self.training and torch.is_grad_enabled():
            self.seen.append((x, labels))
        return self._output(x, labels, kwargs.get("num_items_in_batch"))


class Careless(Tiny):
    """Takes the number of items and ignores it: Trainer's loss is then too large."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        return self._output(x, labels, None)


def data(n: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """n points of three classes, one of which is hard."""
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    labels = (x[:, :3] + 0.3 * x[:, 3:6]).argmax(1)
    return [{"x": x[i], "labels": labels[i]} for i in range(n)]


def make(
    folder: Path | str,
    model: type[Tiny] = Tiny,
    *,
    n: int = 44,
    dropout: float = 0.0,
    norm: bool = False,
    trainer: type[Trainer] = Trainer,
    callbacks: list[TrainerCallback] | None = None,
    optimizers: Any = (None, None),
    optimizer_cls_and_kwargs: Any = None,
    **arguments: Any,
) -> Trainer:
    """A trainer over the tiny model: batches of 4, one epoch, a log each step."""
    given = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        **arguments,
    }
    args = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, dataloader_pin_memory=False, seed=1, **given
    )
    spare_imports()
    set_seed(0)
    quiet = trainer(
        model(TinyConfig(dropout=dropout, norm=norm)),
        args,
        train_dataset=data(n),
        eval_dataset=data(8, seed=1),
        callbacks=callbacks,
        optimizers=optimizers,
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
    )
    quiet.pop_callback(next(c for c in quiet.callback_handler.callbacks if type(c).__name__ == "PrinterCallback"))
    return quiet


def rows(trainer: Trainer, key: str = "loss") -> list[dict[str, float]]:
    """The rows of the log that have `key`."""
    return [row for row in trainer.state.log_history if key in row]


def weights(trainer_or_model: Any) -> torch.Tensor:
    """All parameters and buffers in one vector."""
    model = getattr(trainer_or_model, "model", trainer_or_model)
    return torch.cat([t.detach().double().flatten() for t in model.state_dict().values()])
