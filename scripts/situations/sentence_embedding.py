"""sentence-transformers' training_nli.py: SoftmaxLoss, whose classifier trains beside the model."""

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from tiny import ScriptArguments, bert, classes, sentences, tokenizer
from transformers import AutoModel, HfArgumentParser, set_seed

import hf_optim


def main(argv=None):
    parser = HfArgumentParser((ScriptArguments, SentenceTransformerTrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses(argv)
    set_seed(training_args.seed)

    encoder, bare = f"{training_args.output_dir}/encoder", AutoModel.from_config(bert(script_args.dropout))
    with training_args.main_process_first():
        if training_args.process_index == 0:
            bare.save_pretrained(encoder)
            tokenizer().save_pretrained(encoder)
    model = SentenceTransformer(encoder, device="cpu")  # with mean pooling
    first, second = sentences(48), sentences(48, seed=1)
    labels = [a + b for a, b in zip(classes(first), classes(second), strict=True)]
    dataset = Dataset.from_dict({"premise": first, "hypothesis": second, "label": labels})
    dataset = dataset.train_test_split(8, shuffle=False)
    train_loss = SoftmaxLoss(model, sentence_embedding_dimension=16, num_labels=3)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        loss=train_loss,
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
