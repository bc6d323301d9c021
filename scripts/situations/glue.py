"""Text classification (run_glue.py)."""

from datasets import Dataset
from tiny import ScriptArguments, bert, classes, sentences, tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
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
    model = AutoModelForSequenceClassification.from_config(bert(script_args.dropout, num_labels=2))
    text = sentences(56)
    raw = Dataset.from_dict({"sentence": text, "label": classes(text)})

    def preprocess_function(examples):
        return words(examples["sentence"], truncation=True)

    encoded = raw.map(preprocess_function, batched=True).train_test_split(16, shuffle=False)

    def compute_metrics(p: EvalPrediction):
        return {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["test"],
        compute_metrics=compute_metrics,
        processing_class=words,
        data_collator=DataCollatorWithPadding(words),
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
