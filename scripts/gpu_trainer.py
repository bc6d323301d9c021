"""transformers' Trainer with every name: float32, bfloat16 and float16, and a resume against the undisturbed run."""

from __future__ import annotations

import json
import logging
import tempfile
from typing import Any

import torch
from gpu_common import arguments, distance, rows

import hf_optim
from hf_optim.check.candidate import Candidate
from hf_optim.errors import one_line

STEPS, CUT = 6, 3


def main() -> None:
    device, names, output = arguments(__doc__ or "")
    try:
        from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed
    except ImportError as e:
        output.write_text(json.dumps({"not_run": str(e)}))
        return
    logging.getLogger("transformers").setLevel(logging.ERROR)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 64, (STEPS * 4, 16), generator=generator)
    data = [{"input_ids": row, "labels": row} for row in words]

    class Stop(TrainerCallback):
        """Interrupts a run."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = state.global_step >= CUT
            return control

    def trainer(name: str, precision: str, folder: str, *callbacks: Any) -> Any:
        set_seed(0)
        config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2)
        args = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=4, save_steps=CUT, logging_steps=1, report_to=[],
            seed=0, data_seed=0, disable_tqdm=True, use_cpu=device.type == "cpu", dataloader_pin_memory=False,
            bf16=precision == "bf16", fp16=precision == "fp16",
        )  # fmt: skip
        built = Trainer(GPT2LMHeadModel(config), args, train_dataset=data, callbacks=list(callbacks))
        hf_optim.attach(built, name, **Candidate(name).hyper)
        return built

    def row(name: str) -> dict[str, Any]:
        cells: dict[str, Any] = {}
        for precision in ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32",):
            with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
                try:
                    run = trainer(name, precision, whole)
                    losses = [x["loss"] for x in (run.train(), run.state.log_history)[1] if "loss" in x]
                    trainer(name, precision, parts, Stop()).train()
                    again = trainer(name, precision, parts)
                    again.train(resume_from_checkpoint=True)
                    cells[precision] = {
                        "first": losses[0],
                        "last": losses[-1],
                        "resume": distance(list(again.model.parameters()), list(run.model.parameters())),
                    }
                except Exception as e:
                    cells[precision] = {"error": one_line(e)}
        return cells

    rows(output, names, row)


if __name__ == "__main__":
    main()
