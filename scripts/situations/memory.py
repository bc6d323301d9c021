"""Accelerate's by_feature/memory.py: `find_executable_batch_size` begins anew with half the batch until it fits."""

import argparse

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import find_executable_batch_size, set_seed
from nlp_example import get_dataloaders
from tiny import ScriptArguments, bert
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

import hf_optim


def training_function(args):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))

    @find_executable_batch_size(starting_batch_size=args.batch_size * 2)
    def inner_training_loop(batch_size):
        accelerator.free_memory()
        set_seed(args.seed)
        train_dataloader, _ = get_dataloaders(accelerator, batch_size)
        model = AutoModelForSequenceClassification.from_config(bert(args.dropout, num_labels=2))
        optimizer = hf_optim.create(ScriptArguments(args.optimizer).optimizer, model)
        lr_scheduler = get_linear_schedule_with_warmup(optimizer, 0, len(train_dataloader) * args.num_epochs)
        model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
            model, optimizer, train_dataloader, lr_scheduler
        )
        session = hf_optim.Session(accelerator, optimizer, steps_per_epoch=len(train_dataloader))

        for _ in range(args.num_epochs):
            model.train()
            for batch in train_dataloader:
                session.loss(lambda batch: model(**batch).loss, batch)
                if batch_size > args.batch_size:
                    raise RuntimeError("CUDA out of memory.")
                session.step()
                lr_scheduler.step()
        accelerator.save_model(model, args.output_dir)

    inner_training_loop()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch_size", type=int, default=8, help="the largest that fits")
    parser.add_argument("--num_epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output_dir", required=True)
    training_function(parser.parse_args(argv))


if __name__ == "__main__":
    main()
