"""Accelerate's nlp_example.py: a loop of one's own over sentence pairs."""

import argparse

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from datasets import Dataset
from tiny import ScriptArguments, bert, classes, sentences, tokenizer
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

import hf_optim


def get_dataloaders(accelerator, batch_size):
    words = tokenizer()
    first, second = sentences(40), sentences(40, seed=1)
    raw = Dataset.from_dict({"sentence1": first, "sentence2": second, "labels": classes(second)})
    encoded = raw.map(
        lambda e: words(e["sentence1"], e["sentence2"], padding="max_length", max_length=24),
        batched=True,
        remove_columns=["sentence1", "sentence2"],
    ).with_format("torch")
    parts = encoded.train_test_split(16, shuffle=False)
    train_dataloader = DataLoader(parts["train"], shuffle=True, batch_size=batch_size, drop_last=True)
    return train_dataloader, DataLoader(parts["test"], batch_size=batch_size)


def training_function(args):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    set_seed(args.seed)
    train_dataloader, eval_dataloader = get_dataloaders(accelerator, args.batch_size)
    model = AutoModelForSequenceClassification.from_config(bert(args.dropout, num_labels=2))
    optimizer = hf_optim.create(ScriptArguments(args.optimizer).optimizer, model)
    lr_scheduler = get_linear_schedule_with_warmup(optimizer, 0, len(train_dataloader) * args.num_epochs)
    model, optimizer, train_dataloader, eval_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, lr_scheduler
    )
    session = hf_optim.Session(accelerator, optimizer, steps_per_epoch=len(train_dataloader))

    for epoch in range(args.num_epochs):
        model.train()
        for batch in train_dataloader:
            session.loss(lambda batch: model(**batch).loss, batch)
            session.step()
            lr_scheduler.step()
        model.eval()
        correct = 0
        for batch in eval_dataloader:
            with torch.no_grad():
                predictions = model(**batch).logits.argmax(-1)
            predictions, references = accelerator.gather_for_metrics((predictions, batch["labels"]))
            correct += int((predictions == references).sum())
        accelerator.print(f"epoch {epoch}: accuracy {correct / len(eval_dataloader.dataset)}")
    accelerator.save_model(model, args.output_dir)


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
