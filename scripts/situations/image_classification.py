"""Image classification (run_image_classification.py): a ViT, transforms on the fly, unused columns kept."""

import torch
from datasets import Dataset
from tiny import ScriptArguments, pictures
from transformers import (
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTConfig,
    set_seed,
)

import hf_optim


def main(argv=None):
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses(argv)
    training_args.remove_unused_columns = False
    set_seed(training_args.seed)

    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=script_args.dropout, attention_probs_dropout_prob=script_args.dropout, num_labels=2,
    )  # fmt: skip
    model = AutoModelForImageClassification.from_config(config)
    pixels, labels = pictures(48)
    dataset = Dataset.from_dict({"image": pixels.tolist(), "label": labels}).train_test_split(8, shuffle=False)

    def train_transforms(batch):
        images = torch.tensor(batch["image"])
        flipped = torch.rand(len(images)) < 0.5
        images[flipped] = images[flipped].flip(-2)
        return {"pixel_values": list(images), "label": batch["label"]}

    def collate_fn(examples):
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"].with_transform(train_transforms),
        eval_dataset=dataset["test"].with_transform(train_transforms),
        data_collator=collate_fn,
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
