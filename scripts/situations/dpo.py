"""TRL's dpo.py."""

from datasets import Dataset
from tiny import ScriptArguments, gpt2, sentences, tokenizer
from transformers import AutoModelForCausalLM, set_seed
from trl import DPOConfig, DPOTrainer, TrlParser

import hf_optim


def main(argv=None):
    parser = TrlParser((ScriptArguments, DPOConfig))
    script_args, training_args = parser.parse_args_and_config(argv)
    set_seed(training_args.seed)

    model = AutoModelForCausalLM.from_config(gpt2(script_args.dropout))
    ref_model = AutoModelForCausalLM.from_config(gpt2(0.0))
    ref_model.load_state_dict(model.state_dict())
    columns = {"prompt": ["the cat"] * 48, "chosen": sentences(48), "rejected": sentences(48, seed=1)}
    dataset = Dataset.from_dict(columns).train_test_split(8, shuffle=False)
    trainer = DPOTrainer(
        model=model,
        ref_model=ref_model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer(),
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
