"""Translation (run_translation.py): Seq2SeqTrainer, T5, and an evaluation that generates."""

from datasets import Dataset
from tiny import SPECIAL, WORDS, ScriptArguments, sentences, tokenizer
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    set_seed,
)

import hf_optim


def main(argv=None):
    parser = HfArgumentParser((ScriptArguments, Seq2SeqTrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses(argv)
    set_seed(training_args.seed)

    words = tokenizer()
    config = T5Config(
        vocab_size=len(SPECIAL) + len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        dropout_rate=script_args.dropout, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(config)
    text = sentences(48)
    reverse = [" ".join(reversed(s.split())) for s in text]
    raw = Dataset.from_dict({"translation": [{"en": a, "ne": b} for a, b in zip(text, reverse, strict=True)]})

    def preprocess_function(examples):
        inputs = [pair["en"] for pair in examples["translation"]]
        targets = [pair["ne"] for pair in examples["translation"]]
        return words(inputs, text_target=targets)

    encoded = raw.map(preprocess_function, batched=True, remove_columns=["translation"])
    encoded = encoded.train_test_split(8, shuffle=False)
    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["test"],
        processing_class=words,
        data_collator=DataCollatorForSeq2Seq(words, model=model),
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate(max_length=8, num_beams=2))


if __name__ == "__main__":
    main()
