"""A training of one's own: a Trainer script in which three places are marked."""

import torch
from transformers import Trainer, TrainingArguments

import hf_optim
from hf_optim import study


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

    def forward(self, x, labels=None):
        out = self.layers(x).squeeze(-1)
        return {"loss": (out - labels).square().mean(), "logits": out}


def rows(number, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 8, generator=generator)
    return [{"x": a, "labels": a.prod().tanh() + a.sum()} for a in x]


# 1. The script is a function that is told which optimizer and which seed; the decorator says what decides.
@study.training(metric="test_loss", greater_is_better=False, title="A regression of eight numbers")
def train(optimizer, seed, folder, steps=40):
    args = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=16, seed=seed, use_cpu=True,
        report_to=[], logging_steps=5, eval_strategy="steps", eval_steps=10, eval_on_start=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(Regression(), args, train_dataset=rows(256, 1), eval_dataset=rows(64, 2))

    # 2. The optimizer of this run goes where yours was.
    hf_optim.attach(trainer, optimizer)
    trainer.train()

    # 3. The figures, and what Trainer logged: the curves.
    figures = {
        "validation_loss": trainer.evaluate(rows(64, 2))["eval_loss"],
        "test_loss": trainer.evaluate(rows(128, 3))["eval_loss"],
    }
    return figures, trainer.state.log_history
