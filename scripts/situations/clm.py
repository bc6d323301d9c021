"""Causal language modelling (run_clm.py): one stream of text cut into blocks."""

from datasets import Dataset
from tiny import ScriptArguments, gpt2, sentences, tokenizer
from transformers import (
    AutoModelForCausalLM,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import hf_optim


def main(argv=None):
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses(argv)
    set_seed(training_args.seed)

    words = tokenizer()
    model = AutoModelForCausalLM.from_config(gpt2(script_args.dropout))
    raw = Dataset.from_dict({"text": sentences(200)})

    def group_texts(examples, block_size=12):
        joined = sum(words(examples["text"], add_special_tokens=False)["input_ids"], [])
        blocks = [joined[i : i + block_size] for i in range(0, len(joined) - block_size + 1, block_size)]
        return {"input_ids": blocks, "labels": [block.copy() for block in blocks]}

    lm_datasets = raw.map(group_texts, batched=True, remove_columns=["text"]).select(range(48))
    lm_datasets = lm_datasets.train_test_split(8, shuffle=False)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=lm_datasets["train"],
        eval_dataset=lm_datasets["test"],
        processing_class=words,
        data_collator=default_data_collator,
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
