"""diffusers' train_unconditional.py: a UNet that predicts noise, a moving average beside it, checkpoints by step."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tiny import ScriptArguments, pictures, share
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hf_optim


def train(args):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    set_seed(args.seed)
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, dropout=args.dropout,
    )  # fmt: skip
    ema_model = EMAModel(model.parameters(), decay=0.9, model_cls=UNet2DModel, model_config=model.config)
    noise_scheduler = DDPMScheduler(num_train_timesteps=50)
    dataset = TensorDataset(pictures(24, channels=1)[0])
    train_dataloader = DataLoader(dataset, batch_size=args.train_batch_size, shuffle=True)
    optimizer = hf_optim.create(ScriptArguments(args.optimizer).optimizer, model)
    total = len(train_dataloader) * args.num_epochs
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=total)
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, lr_scheduler
    )
    accelerator.register_for_checkpointing(ema_model)
    session = hf_optim.Session(accelerator, optimizer, steps_per_epoch=len(train_dataloader))

    def loss_fn(clean_images):
        whole = len(clean_images) * accelerator.num_processes
        noise = share(torch.randn(whole, *clean_images.shape[1:]), accelerator)
        timesteps = share(torch.randint(0, noise_scheduler.config.num_train_timesteps, (whole,)), accelerator)
        noisy_images = noise_scheduler.add_noise(clean_images, noise, timesteps)
        return F.mse_loss(model(noisy_images, timesteps).sample, noise)

    global_step = 0
    if args.resume_from_checkpoint:
        accelerator.load_state(args.resume_from_checkpoint)
        global_step = int(Path(args.resume_from_checkpoint).name.removeprefix("checkpoint-"))
    first_epoch, resume_step = divmod(global_step, len(train_dataloader))
    for epoch in range(first_epoch, args.num_epochs):
        model.train()
        train_dataloader.set_epoch(epoch)
        skip = resume_step if epoch == first_epoch else 0
        for (images,) in accelerator.skip_first_batches(train_dataloader, skip) if skip else train_dataloader:
            session.loss(loss_fn, images)
            session.step()
            lr_scheduler.step()
            ema_model.step(model.parameters())
            global_step += 1
            if args.checkpointing_steps and global_step % args.checkpointing_steps == 0:
                accelerator.save_state(str(Path(args.output_dir) / f"checkpoint-{global_step}"))
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(Path(args.output_dir))
        ema_model.save_pretrained(Path(args.output_dir) / "ema")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--train_batch_size", "--batch_size", type=int, default=8)
    parser.add_argument("--num_epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--checkpointing_steps", type=int)
    parser.add_argument("--resume_from_checkpoint")
    train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
