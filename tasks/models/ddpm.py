"""Denoising diffusion (DDPM) with diffusers' UNet and schedulers, as a transformers model that carries its average."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.utils import ModelOutput


class DDPMConfig(PreTrainedConfig):
    """The UNet, the noise schedule and the average of the weights; the defaults are DDPM's for CIFAR-10.

    `channels` times each of `multipliers` are the widths of the levels, the resolution halves from one to the next;
    `attention` are the resolutions that attend (the middle block always does). Betas rise linearly from `beta_start`
    to `beta_end` over `timesteps`. `ema_decay` is the average's per optimizer step. `flip`: in training every image is
    mirrored left to right with probability 1/2.
    """

    model_type = "hf_optim_ddpm"
    resolution: int = 32
    image_channels: int = 3
    channels: int = 128
    multipliers: list[int] | tuple[int, ...] = (1, 2, 2, 2)
    attention: list[int] | tuple[int, ...] = (16,)
    layers_per_block: int = 2
    dropout: float = 0.1
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    ema_decay: float = 0.9999
    flip: bool = True


def unet(config: DDPMConfig) -> nn.Module:
    """diffusers' UNet with the details of DDPM's own (35.7 million parameters with the config's defaults)."""
    levels = len(config.multipliers)
    attends = [config.resolution >> level in config.attention for level in range(levels)]
    network: Any = UNet2DModel(
        sample_size=config.resolution,
        in_channels=config.image_channels,
        out_channels=config.image_channels,
        block_out_channels=tuple(config.channels * factor for factor in config.multipliers),
        down_block_types=tuple("AttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        up_block_types=tuple("AttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
        layers_per_block=config.layers_per_block,
        dropout=config.dropout,
        attention_head_dim=None,
        norm_num_groups=min(32, config.channels // 2),
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    return network


@dataclass
class DDPMOutput(ModelOutput):
    """`loss`: the mean; `losses` [N]: each image's mean squared error, over its pixels and channels."""

    loss: torch.Tensor | None = None
    losses: torch.Tensor | None = None


class DDPMModel(PreTrainedModel):
    """A UNet that is trained to predict the noise, and the moving average of its weights, which is evaluated.

    Both are in every checkpoint. In training mode `unet` runs, in evaluation mode `ema`; `ema` takes no gradient and
    changes only by `update_ema` (after each optimizer step, see `UpdateEMA`).
    """

    config_class = DDPMConfig
    config: DDPMConfig
    main_input_name = "pixel_values"
    base_model_prefix = "ddpm"
    accepts_loss_kwargs = False

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__(config)
        self.unet = unet(config)
        self.ema = copy.deepcopy(self.unet).requires_grad_(False)
        self.noising: Any = DDPMScheduler(config.timesteps, config.beta_start, config.beta_end, "linear")
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: diffusers' own initialisation, which `ema` has copied, stays."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which makes every weight trainable: the average is not."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).ema.requires_grad_(False)
        return loaded

    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        return_loss: bool = True,  # without this name Trainer would not see a loss in a batch without labels
    ) -> DDPMOutput:
        """The squared error of the predicted noise.

        Args:
            pixel_values: [N, channels, resolution, resolution] in [-1, 1].
            noise: like pixel_values; None draws it, and what else is random, from torch's random state, here and not
                in the data loader: a closure that repeats the batch, or a resumed run, then sees the same again.
            timesteps: int64 [N] in [0, config.timesteps); None draws them.
        """
        if self.training and self.config.flip:
            mirrored = torch.rand(len(pixel_values), 1, 1, 1, device=pixel_values.device) < 0.5
            pixel_values = torch.where(mirrored, pixel_values.flip(-1), pixel_values)
        if noise is None:
            noise = torch.randn_like(pixel_values)
        if timesteps is None:
            timesteps = torch.randint(self.config.timesteps, (len(pixel_values),), device=pixel_values.device)
        noisy = self.noising.add_noise(pixel_values, noise, timesteps)
        predicted = (self.unet if self.training else self.ema)(noisy, timesteps, return_dict=False)[0]
        losses = (predicted.float() - noise.float()).square().flatten(1).mean(dim=1)
        return DDPMOutput(loss=losses.mean() if return_loss else None, losses=losses)

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the average towards the weights: ema = decay ema + (1 - decay) weights."""
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.unet.parameters()), 1 - self.config.ema_decay)

    @torch.no_grad()
    def generate(self, noise: torch.Tensor, steps: int) -> torch.Tensor:
        """Images from `noise` [N, channels, resolution, resolution] by DDIM in `steps` steps, without further noise.

        Returns:
            uint8, of the noise's shape.
        """
        scheduler: Any = DDIMScheduler(self.config.timesteps, self.config.beta_start, self.config.beta_end, "linear")
        scheduler.set_timesteps(steps)
        images = noise.to(self.device, self.dtype)
        for timestep in scheduler.timesteps.tolist():
            images = scheduler.step(self.ema(images, timestep, return_dict=False)[0], timestep, images)[0]
        return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class UpdateEMA(TrainerCallback):
    """Keeps a model's average up to date, once after every optimizer step, and lets every process draw its own noise.

    Trainer seeds all processes alike; images that share noise and timesteps would make a batch of fewer.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0 and args.process_index > 0:  # a resumed process has its own state in the checkpoint
            torch.manual_seed(args.seed + 1_000_003 * args.process_index)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.update_ema()


class EvaluateAt(TrainerCallback):
    """One evaluation more, after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate = control.should_evaluate or state.global_step == self.step


def batches_of_noise(
    config: DDPMConfig, count: int, batch: int, seed: int, rank: int = 0, processes: int = 1
) -> Iterator[tuple[int, torch.Tensor]]:
    """This process's share of the noise that `count` images start from: whole batches, each with its number.

    A batch depends on `seed` and its number alone, so the images do not depend on the number of processes.
    """
    for number in range(rank, -(-count // batch), processes):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        rows = min(batch, count - number * batch)
        shape = (rows, config.image_channels, config.resolution, config.resolution)
        yield number, torch.randn(shape, generator=generator)
