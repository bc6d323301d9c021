"""Multiple choice (run_swag.py): four endings a question, a batch of batches."""

import torch
from datasets import Dataset
from tiny import ScriptArguments, bert, classes, sentences, tokenizer
from transformers import (
    AutoModelForMultipleChoice,
    DataCollatorForMultipleChoice,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_optim


def main(argv=None):
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses(argv)
    set_seed(training_args.seed)

    words = tokenizer()
    model = AutoModelForMultipleChoice.from_config(bert(script_args.dropout, initializer_range=0.3))
    text = sentences(5 * 48)
    raw = Dataset.from_dict(
        {
            "sent1": text[:48],
            **{f"ending{i}": text[48 * (i + 1) : 48 * (i + 2)] for i in range(4)},
            "label": torch.tensor([classes(text[48 * (i + 1) : 48 * (i + 2)]) for i in range(4)]).argmax(0).tolist(),
        }
    )

    def preprocess_function(examples):
        first = [context for context in examples["sent1"] for _ in range(4)]
        second = [examples[f"ending{i}"][k] for k in range(len(examples["sent1"])) for i in range(4)]
        encoded = words(first, second, truncation=True)
        return {key: [rows[i : i + 4] for i in range(0, len(rows), 4)] for key, rows in encoded.items()}

    encoded = raw.map(preprocess_function, batched=True).train_test_split(8, shuffle=False)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["test"],
        processing_class=words,
        data_collator=DataCollatorForMultipleChoice(tokenizer=words),
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
