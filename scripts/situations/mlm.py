"""Masked language modelling (run_mlm.py): the collator masks anew at every epoch, and lines differ in their masks."""

from datasets import Dataset
from tiny import ScriptArguments, bert, sentences, tokenizer
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
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
    model = AutoModelForMaskedLM.from_config(bert(script_args.dropout))
    raw = Dataset.from_dict({"text": sentences(48)})

    def tokenize(examples):
        return words(examples["text"], return_special_tokens_mask=True)

    tokenized = raw.map(tokenize, batched=True, remove_columns=["text"]).train_test_split(8, shuffle=False)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["test"],
        processing_class=words,
        data_collator=DataCollatorForLanguageModeling(words, mlm_probability=0.3),
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
