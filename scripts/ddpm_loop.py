"""Diffusion on the embedded digits in an Accelerate loop of one's own: any optimizer of the library, no Trainer.

    python scripts/ddpm_loop.py --optimizer adamw --output runs/loop
    python scripts/ddpm_loop.py --optimizer sls --clip 0 --output runs/search

`hf_optim.Session` is the whole difference to a loop with a torch optimizer: it feeds the loss to rules that read it,
and evaluates the batch again for those that search along it. Stop it anywhere; --resume goes on bit for bit from the
last --save-every.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hf_optim.errors import UserError

DIGITS = Path(__file__).parent.parent / "tasks" / "data" / "digits"


def options(arguments: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--optimizer", default="adamw", help="a name of `hf-optim list` (default adamw)")
    parser.add_argument("--lr", type=float, help="default: the optimizer's own")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps (default 400)")
    parser.add_argument("--batch", type=int, default=64, help="images of a micro-batch and process (default 64)")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches a step (default 1)")
    parser.add_argument("--warmup", type=int, default=50, help="steps of linear warm-up (default 50)")
    parser.add_argument("--clip", type=float, default=1.0, help="gradient norm; 0 for none, as line searches need it")
    parser.add_argument("--channels", type=int, default=16, help="width of the UNet's first level (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100, help="steps from one saved state to the next")
    parser.add_argument("--output", type=Path, required=True, help="folder for the state, the model and a grid")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output")
    return parser.parse_args(arguments)


class Progress:
    """How many optimizer steps and batches are done; saved and loaded with the rest of the state."""

    def __init__(self) -> None:
        self.steps = self.batches = 0

    def state_dict(self) -> dict[str, int]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps, self.batches = state["steps"], state["batches"]


def train(given: argparse.Namespace) -> dict[str, Any]:
    """Train, save the model and a grid of samples; gives the loss on the held-out digits."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from torch.utils.data import DataLoader

    import hf_optim
    from hf_optim.tasks.data.images import read
    from hf_optim.tasks.data.pictures import NoisedPictures, Pictures, pixels_of, save_grid
    from hf_optim.tasks.models.ddpm import DDPMConfig, DDPMModel, batches_of_noise

    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), gradient_accumulation_steps=given.accumulation)
    pixels = pixels_of(read(DIGITS), 8)
    set_seed(given.seed)
    model = DDPMModel(
        DDPMConfig(
            resolution=8, image_channels=1, channels=given.channels, multipliers=[1, 2], attention=[],
            layers_per_block=1, dropout=0.0, flip=False, ema_decay=0.99,
        )
    )  # fmt: skip
    set_seed(given.seed, device_specific=True)  # every process draws noise of its own
    optimizer = hf_optim.create(given.optimizer, model, **({} if given.lr is None else {"lr": given.lr}))
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, given.warmup)))
    # A generator of its own: starting an epoch anew in its middle then draws nothing from torch's random state.
    order = torch.Generator().manual_seed(given.seed)
    images = Pictures(pixels["train"])
    loader = DataLoader(images, given.batch, shuffle=True, drop_last=True, collate_fn=dict, generator=order)
    model, optimizer, loader, warmup = accelerator.prepare(model, optimizer, loader, warmup)
    inner = accelerator.unwrap_model(model)
    session = hf_optim.Session(accelerator, optimizer, steps_per_epoch=len(loader) // given.accumulation)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if given.resume:
        if not (given.output / "state").is_dir():
            raise UserError(f"resume: {given.output} holds no state: leave --resume out to begin")
        accelerator.load_state(str(given.output / "state"))

    while progress.steps < given.steps:
        epoch, done = divmod(progress.batches, len(loader))
        loader.set_epoch(epoch)
        for batch in accelerator.skip_first_batches(loader, done) if done else loader:
            progress.batches += 1
            with accelerator.accumulate(model):
                # The model draws noise and timesteps in its forward pass, so inside: a search sees the same again.
                loss = session.loss(lambda batch: model(**batch).loss, batch)
                if accelerator.sync_gradients and given.clip:
                    accelerator.clip_grad_norm_(model.parameters(), given.clip)
                if session.step():
                    inner.update_ema()
                    warmup.step()
                    progress.steps += 1
                    report(accelerator, progress.steps, given, float(loss), session.figures())
            if progress.steps == given.steps:
                break

    model.eval()
    held_out = NoisedPictures(pixels["validation"], inner.config.timesteps)
    with torch.no_grad():
        whole = held_out.__getitems__(range(len(held_out)))
        validation = float(inner(**{key: value.to(accelerator.device) for key, value in whole.items()}).loss)
    ((_, noise),) = batches_of_noise(inner.config, count=64, batch=64, seed=1)
    if accelerator.is_main_process:
        inner.save_pretrained(given.output / "model")
        save_grid(inner.generate(noise, steps=min(100, given.steps)).cpu(), given.output, "samples.png")
    return {"steps": given.steps, "validation_loss": validation}


def report(accelerator: Any, step: int, given: argparse.Namespace, loss: float, figures: dict[str, float]) -> None:
    """A line now and then, and the state that --resume goes on from."""
    if step % 20 == 0 or step == given.steps:
        accelerator.print(json.dumps({"step": step, "loss": loss, **figures}))
    if step % given.save_every == 0:
        accelerator.save_state(str(given.output / "state"))


def main(arguments: list[str] | None = None) -> int:
    """Give the exit code."""
    try:
        given = options(arguments)
        print(json.dumps(train(given)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
