"""Question answering (run_qa.py): a trainer of its own that evaluates in its own way, and spans as labels."""

from datasets import Dataset
from tiny import ScriptArguments, bert, sentences, tokenizer
from transformers import (
    AutoModelForQuestionAnswering,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import hf_optim


class QuestionAnsweringTrainer(Trainer):
    """Evaluates answers as strings, as the example's trainer_qa.py does."""

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        output = self.predict(self.eval_dataset if eval_dataset is None else eval_dataset)
        starts, ends = (logits.argmax(1) for logits in output.predictions)
        truth = output.label_ids
        metrics = {f"{metric_key_prefix}_exact_match": float(((starts == truth[0]) & (ends == truth[1])).mean())}
        self.log(metrics)
        return metrics


def main(argv=None):
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses(argv)
    set_seed(training_args.seed)

    words = tokenizer()
    model = AutoModelForQuestionAnswering.from_config(bert(script_args.dropout))
    raw = Dataset.from_dict({"context": sentences(48), "question": ["the cat"] * 48})

    def prepare_features(examples):
        encoded = words(examples["question"], examples["context"], padding="max_length", max_length=16)
        starts = [row.index(words.sep_token_id) + 1 for row in encoded["input_ids"]]
        ends = [start + len(text.split()) - 1 for start, text in zip(starts, examples["context"], strict=True)]
        return {**encoded, "start_positions": starts, "end_positions": ends}

    features = raw.map(prepare_features, batched=True, remove_columns=raw.column_names)
    features = features.train_test_split(8, shuffle=False)
    trainer = QuestionAnsweringTrainer(
        model=model,
        args=training_args,
        train_dataset=features["train"],
        eval_dataset=features["test"],
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
