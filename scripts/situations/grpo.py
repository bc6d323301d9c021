"""TRL's grpo.py: completions are drawn from the model and judged by a function."""

from datasets import Dataset
from tiny import ScriptArguments, gpt2, sentences, tokenizer
from transformers import AutoModelForCausalLM, set_seed
from trl import GRPOConfig, GRPOTrainer, TrlParser

import hf_optim


def different_words(completions, **kwargs):
    return [float(len(set(completion.split()))) for completion in completions]


def main(argv=None):
    parser = TrlParser((ScriptArguments, GRPOConfig))
    script_args, training_args = parser.parse_args_and_config(argv)
    training_args.num_generations, training_args.max_completion_length = 2, 4
    set_seed(training_args.seed)

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_config(gpt2(script_args.dropout)),
        reward_funcs=different_words,
        args=training_args,
        train_dataset=Dataset.from_dict({"prompt": [" ".join(s.split()[:3]) for s in sentences(24)]}),
        processing_class=tokenizer(),
    )
    hf_optim.attach(trainer, script_args.optimizer)

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()


if __name__ == "__main__":
    main()
