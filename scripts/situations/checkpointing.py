"""Accelerate's by_feature/checkpointing.py: the whole state every few steps, gone on with in the middle of an epoch."""

import argparse
from pathlib import Path

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from nlp_example import get_dataloaders
from tiny import ScriptArguments, bert
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

import hf_optim


def training_function(args):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    set_seed(args.seed)
    train_dataloader, _ = get_dataloaders(accelerator, args.batch_size)
    model = AutoModelForSequenceClassification.from_config(bert(args.dropout, num_labels=2))
    optimizer = hf_optim.create(ScriptArguments(args.optimizer).optimizer, model)
    lr_scheduler = get_linear_schedule_with_warmup(optimizer, 0, len(train_dataloader) * args.num_epochs)
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, lr_scheduler
    )
    session = hf_optim.Session(accelerator, optimizer, steps_per_epoch=len(train_dataloader))

    overall_step = starting_epoch = resume_step = 0
    if args.resume_from_checkpoint:
        accelerator.load_state(args.resume_from_checkpoint)
        overall_step = int(Path(args.resume_from_checkpoint).stem.removeprefix("step_"))
        starting_epoch, resume_step = divmod(overall_step, len(train_dataloader))

    for epoch in range(starting_epoch, args.num_epochs):
        model.train()
        train_dataloader.set_epoch(epoch)
        active_dataloader = train_dataloader
        if epoch == starting_epoch and resume_step:
            active_dataloader = accelerator.skip_first_batches(train_dataloader, resume_step)
        for batch in active_dataloader:
            session.loss(lambda batch: model(**batch).loss, batch)
            session.step()
            lr_scheduler.step()
            overall_step += 1
            if args.checkpointing_steps and overall_step % args.checkpointing_steps == 0:
                accelerator.save_state(str(Path(args.output_dir) / f"step_{overall_step}"))
    accelerator.save_model(model, args.output_dir)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--checkpointing_steps", type=int)
    parser.add_argument("--resume_from_checkpoint")
    training_function(parser.parse_args(argv))


if __name__ == "__main__":
    main()
