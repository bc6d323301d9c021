"""Accelerate's by_feature/early_stopping.py: any process may ask all to stop."""

import argparse

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from nlp_example import get_dataloaders
from tiny import ScriptArguments, bert
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

import hf_optim


class EarlyStoppingCallback:
    """Asks to stop when the loss was seldom below `threshold`, here: after `patience` steps."""

    def __init__(self, threshold=0.0, patience=5):
        self.count, self.threshold, self.patience = 0, threshold, patience

    def check_early_stopping(self, loss):
        self.count += loss > self.threshold
        return self.count >= self.patience


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
    callback = EarlyStoppingCallback()

    for _ in range(args.num_epochs):
        model.train()
        for batch in train_dataloader:
            loss = session.loss(lambda batch: model(**batch).loss, batch)
            session.step()
            lr_scheduler.step()
            if callback.check_early_stopping(float(loss)):
                accelerator.set_trigger()
            if accelerator.check_trigger():
                accelerator.save_model(model, args.output_dir)
                return


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output_dir", required=True)
    training_function(parser.parse_args(argv))


if __name__ == "__main__":
    main()
