"""The scripts of this folder, and the rules that each is run with."""

from __future__ import annotations

from dataclasses import dataclass

#: optimizer steps of a run; the checkpoint is written in the middle
STEPS = 6

#: kind of rule -> specification, the same in every script. eps is large, so that gradients which are zero but for their
#: rounding (those of the biases of attention's keys) move nothing.
KINDS: dict[str, dict] = {
    "plain": {"name": "adan", "lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3},
    "loss-aware": {"name": "smaran", "lr": 0.05, "weight_decay": 0.1},
    "wrapper": {"name": "tlr", "base": {"name": "adamw", "lr": 5e-3, "weight_decay": 0.0, "eps": 1e-3}, "interval": 2},
    "line search": {"name": "sls", "steps_per_epoch": 5},
}


@dataclass(frozen=True)
class Situation:
    """One script.

    Args:
        name: its file.
        like: whose script it is like.
        door: "attach" or "Session".
        checkpoint: the folder that it leaves in the middle; empty where the script has no checkpoints.
        accumulation: micro-batches of a step.
        by_labels: whether its loss is divided by the number of a step's labels, and is not the mean over its batches.
        draws: whether its batches are masked or flipped anew each time. Trainer draws the next batch before it keeps
            the random state in a checkpoint, so that a resumed run sees others than the one that was not interrupted;
            it is compared with plain torch over the batches that it saw.
        local: whether each process steps on its own gradients, so that two are compared with two in plain torch.
        more: further arguments.
    """

    name: str
    like: str
    door: str = "attach"
    checkpoint: str = "checkpoint-3"
    accumulation: int = 1
    by_labels: bool = False
    draws: bool = False
    local: bool = False
    more: tuple[str, ...] = ()


_TRL = ("--bf16", "False")
_LOOP = {"door": "Session", "checkpoint": ""}
SITUATIONS: dict[str, Situation] = {
    s.name: s
    for s in (
        Situation("clm", "transformers, run_clm.py", accumulation=2, by_labels=True),
        Situation("mlm", "transformers, run_mlm.py", accumulation=2, draws=True),
        Situation("glue", "transformers, run_glue.py"),
        Situation("translation", "transformers, run_translation.py", accumulation=2),
        Situation("qa", "transformers, run_qa.py"),
        Situation("image_classification", "transformers, run_image_classification.py", draws=True),
        Situation("swag", "transformers, run_swag.py"),
        Situation("unconditional_image", "diffusers, train_unconditional.py", door="Session"),
        Situation("nlp_example", "accelerate, nlp_example.py", **_LOOP),
        Situation("gradient_accumulation", "accelerate, by_feature", accumulation=2, **_LOOP),
        Situation("checkpointing", "accelerate, by_feature", door="Session", checkpoint="step_3"),
        Situation("local_sgd", "accelerate, by_feature", local=True, **_LOOP),
        Situation("memory", "accelerate, by_feature", **_LOOP),
        Situation("early_stopping", "accelerate, by_feature", **_LOOP),
        Situation("sft", "TRL, sft.py", by_labels=True, more=_TRL),
        Situation("dpo", "TRL, dpo.py", more=_TRL),
        Situation("kto", "TRL, kto.py", more=_TRL),
        Situation("reward", "TRL, reward.py", more=_TRL),
        Situation("grpo", "TRL, grpo.py", more=_TRL),
        Situation("sentence_embedding", "sentence-transformers, training_nli.py"),
    )
}
