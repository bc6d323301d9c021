"""What a reader of the documents has: the names that blocks of Python use, and the files that commands name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

STUDY = """\
name: my
seeds: 2
baseline: adamw
tasks: [{task: logistic, size: smoke}]
optimizers: [{name: adamw, lr: 0.01}, {name: smaran, lr: 0.1}, {name: sgd, lr: 0.1}]
"""
#: studies that pages read: made of STUDY under their names, with these seeds, when a command first names them
FURTHER = {"a": [0], "b": [1], "before": [0, 1], "after": [0, 1]}
SCRIPT = """\
import torch
from transformers import Trainer, TrainingArguments

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 1)

    def forward(self, x, labels=None):
        out = self.fc(x).squeeze(-1)
        return {"loss": (out - labels).square().mean(), "logits": out}

rows = [{"x": torch.randn(4), "labels": torch.randn(())} for _ in range(64)]
args = TrainingArguments("glue", max_steps=4, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1)
Trainer(Model(), args, train_dataset=rows).train()
"""
SAM = """\
import torch


class SAM(torch.optim.SGD):
    \"\"\"Sharpness-aware minimisation around SGD: the gradient of the worst point near by.\"\"\"

    def __init__(self, params, rho=0.05, lr=0.01):
        super().__init__(params, lr=lr)
        self.rho = rho

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params]).norm() + 1e-12
        climbs = [p.grad * (self.rho / norm) for p in params]
        for p, climb in zip(params, climbs):
            p.add_(climb)
        with torch.enable_grad():
            closure()
        for p, climb in zip(params, climbs):
            p.sub_(climb)
        super().step()
        return loss
"""
WORDS = "the cat sat on a mat and the dog saw it while rain fell over old green hills near a slow river".split()


def lay(folder: Path) -> None:
    """The files that the pages take for granted: a study, a script, texts, photos, and the repository's own."""
    for name in ("scripts", "configs", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    for name, text in {"my.yaml": STUDY, "run_glue.py": SCRIPT, "my_optimizers.py": SAM}.items():
        (folder / name).write_text(text)
    for name, seeds in FURTHER.items():
        text = STUDY.replace("name: my", f"name: {name}").replace("seeds: 2", f"seeds: {{these: {seeds}}}")
        (folder / f"{name}.yaml").write_text(text)
    sentences = [" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(1, 15)) for i in range(800)]
    sentences = [f"In line {i} {sentence}." for i, sentence in enumerate(sentences)]
    paragraphs = [" ".join(pair) for pair in zip(sentences[::2], sentences[1::2], strict=True)]
    splits = {"train": paragraphs[:320], "validation": paragraphs[320:360], "test": paragraphs[360:]}
    for name in ("my/text", "my/corpus"):
        (folder / name).mkdir(parents=True)
        for split, part in splits.items():
            (folder / name / f"{split}.txt").write_text("\n\n".join(part))
    for language in ("de", "en"):
        (folder / f"my/sentences.{language}").write_text("\n".join(sentences))
    pairs = [{"prompt": f"{word}?", "answer": word} for word in WORDS * 10]
    (folder / "my/pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    _photos(folder / "photos")


def _photos(folder: Path) -> None:
    from PIL import Image

    for split, count in (("train", 40), ("validation", 10), ("test", 10)):
        for i, kind in enumerate(("cats", "dogs")):
            (folder / split / kind).mkdir(parents=True)
            for n in range(count):
                Image.new("RGB", (32, 32), (200 * i, 5 * n % 255, 90 + 3 * n)).save(folder / split / kind / f"{n}.png")


def _model() -> Any:
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    class Regression(torch.nn.Module):
        """As Trainer and a plain loop want it."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(10, 1)

        def forward(self, x: Any, labels: Any = None) -> Any:
            out = self.fc(x)
            loss = None if labels is None else (out.squeeze(-1) - labels).square().mean()
            return out if loss is None else SequenceClassifierOutput(loss=loss, logits=out)

    return Regression()


def _train_set() -> Any:
    import torch

    return [{"x": torch.randn(10), "labels": torch.randn(())} for _ in range(64)]


def _loader() -> Any:
    import torch

    return torch.utils.data.DataLoader(torch.randn(64, 10), batch_size=8)


def _args() -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        "out", max_steps=4, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, max_grad_norm=0.0
    )


def _trainer() -> Any:
    from transformers import Trainer

    return Trainer(_model(), _args(), train_dataset=_train_set())


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def _optimizer(model: Any, accelerator: Any) -> Any:
    import hf_optim

    return accelerator.prepare(hf_optim.create("smaran", model, lr=0.05))


def _scheduler(optimizer: Any) -> Any:
    import torch

    return torch.optim.lr_scheduler.ConstantLR(getattr(optimizer, "optimizer", optimizer))


def _session(accelerator: Any, optimizer: Any) -> Any:
    import hf_optim

    return hf_optim.Session(accelerator, optimizer)


def _hf_optim() -> Any:
    import hf_optim

    return hf_optim


def _loss(model: Any) -> Any:
    import torch

    return model(torch.randn(8, 10)).square().mean()


def _closure(model: Any) -> Any:
    def closure() -> Any:
        model.zero_grad()
        loss = _loss(model)
        loss.backward()
        return loss

    return closure


def _transformers(name: str) -> Callable[[], Any]:
    def imported() -> Any:
        import transformers

        return getattr(transformers, name)

    return imported


#: how a name comes about that a block reads and no block before has made; the arguments are such names, too
NAMES: dict[str, Callable[..., Any]] = {
    "hf_optim": _hf_optim,
    "Trainer": _transformers("Trainer"),
    "model": _model,
    "train_set": _train_set,
    "loader": _loader,
    "args": _args,
    "trainer": _trainer,
    "accelerator": _accelerator,
    "optimizer": _optimizer,
    "d_optimizer": _optimizer,
    "g_optimizer": _optimizer,
    "scheduler": _scheduler,
    "session": _session,
    "loss": _loss,
    "closure": _closure,
    "loss_fn": lambda: lambda model, batch: model(batch).square().mean(),
    "evaluate": lambda: lambda model: model.eval() and model.train(),
    "d_loss": lambda model: lambda batch: model(batch).square().mean(),
    "g_loss": lambda model: lambda batch: model(batch).abs().mean(),
}


def give(name: str, scope: dict[str, Any]) -> None:
    """Puts `name` and what it is made of into the scope, as far as they are not there."""
    if name in scope:
        return
    make = NAMES[name]
    wanted = make.__code__.co_varnames[: make.__code__.co_argcount]
    for other in wanted:
        give(other, scope)
    scope[name] = make(*(scope[other] for other in wanted))
