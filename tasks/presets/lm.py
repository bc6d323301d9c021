"""The sizes of the task `lm`: every value says where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_optim.experiment.task import REST, Preset, Size, Value

BPE = {"tokenizer": "bpe", "vocabulary": 1024, "block": 128}
TINY = {"tokenizer": "bpe", "vocabulary": 384, "block": 32}
# No dropout: at these sizes no sample is seen more than a few times.
GPT2: dict[str, Any] = {
    "n_embd": 128,
    "n_layer": 3,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
# GPT-2's 0.02 suits a width of 768; at 128 with tied weights it costs the first few hundred steps.
GPT2 |= {"initializer_range": 0.08, "activation_function": "gelu_new"}
LLAMA: dict[str, Any] = {
    "initializer_range": 0.08,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
LSTM = {"embedding_size": 192, "hidden_size": 192, "num_layers": 2, "dropout": 0.0, "tie_word_embeddings": True}
LSTM["initializer_range"] = 0.1
PTB_LSTM: dict[str, Any] = {
    "tokenizer": "words",
    "vocabulary": 10000,
    "block": 36,
    "embedding_size": 650,
    "hidden_size": 650,
    "num_layers": 2,
    "dropout": 0.3,
    "tie_word_embeddings": True,
    "duplicates": "keep",  # what is published is of the whole test split
}


def _smoke(model: Mapping[str, Any]) -> Preset:
    return Preset(
        epochs=Value(1),
        steps=Value(40),
        evaluations=Value(2),
        batch_size=Value(8),
        evaluation_batch=Value(64),
        train_evaluation=Value(64),
        optimizer=Value({"name": "adamw", "lr": 3e-3}),
        data=Value("wiki"),
        samples=Value(120, "ours", "paragraphs of train; a quarter of that of the others"),
        model=Value(dict(model)),
    )


def _small(model: Mapping[str, Any], note: str, rate: float = 3e-3, steps: int = 600) -> Preset:
    return Preset(
        epochs=Value(1),
        steps=Value(steps),
        evaluations=Value(6),
        batch_size=Value(16),
        evaluation_batch=Value(32),
        train_evaluation=Value(256),
        optimizer=Value({"name": "adamw", "lr": rate}),
        schedule=Value({"name": "cosine", "warmup": 0.05}),
        max_grad_norm=Value(0.0, "ours", "no clipping, which would hide what a rule does with its gradient"),
        data=Value("wiki"),
        model=Value(dict(model), "ours", note),
    )


def _paper(model: Mapping[str, Any], note: str) -> Preset:
    return Preset(
        epochs=Value(25, "ours", "those of AGR's ALBERT on the same text; no paper trains this model"),
        evaluations=Value(25),
        batch_size=Value(16, "ours", "that of AGR's ALBERT"),
        evaluation_batch=Value(16),
        train_evaluation=Value(512),
        optimizer=Value({"name": "adamw", "lr": 6e-4, "weight_decay": 0.1}),
        schedule=Value({"name": "cosine", "warmup": 0.02}),
        max_grad_norm=Value(1.0),
        data=Value("wikitext-2", "ours", "AGR's text, there for ALBERT"),
        model=Value({"tokenizer": "bpe", "vocabulary": 8192, "block": 512, **model}, "ours", note),
    )


SIZE_TABLE = {
    "smoke": Size(
        "seconds: 120 of the embedded paragraphs, for tests",
        {
            "gpt2": _smoke({**TINY, **GPT2, "n_embd": 32, "n_layer": 1, "n_head": 2, "initializer_range": 0.02}),
            "llama": _smoke(
                {
                    **TINY,
                    **LLAMA,
                    "initializer_range": 0.02,
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 1,
                }
            ),
            "lstm": _smoke({**TINY, **LSTM, "embedding_size": 32, "hidden_size": 32, "initializer_range": 0.05}),
            "pretrained": _smoke({"checkpoint": None, "block": 32}),
        },
    ),
    "small": Size(
        "minutes on two cores: all embedded paragraphs; AdamW and SGD are far apart",
        {
            "gpt2": _small({**BPE, **GPT2}, "0.74 million parameters"),
            "llama": _small({**BPE, **LLAMA}, "0.86 million parameters"),
            "lstm": _small({**BPE, **LSTM}, "0.79 million parameters", rate=1e-2),
            "pretrained": _small({"checkpoint": None, "block": 128}, "", rate=1e-4, steps=200),
        },
    ),
    "paper": Size(
        "WikiText-2 from the Hub, the Penn Treebank for the LSTM; for a GPU",
        {
            "gpt2": _paper(
                {"n_embd": 512, "n_layer": 8, "n_head": 8, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
                "29.7 million parameters; GPT-2's dropout",
            ),
            "llama": _paper(
                {
                    "hidden_size": 512,
                    "intermediate_size": 1376,
                    "num_hidden_layers": 8,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 8,
                    "tie_word_embeddings": False,
                },
                "33.7 million parameters",
            ),
            "lstm": Preset(
                epochs=Value(40, "ours", "AMVT prints none"),
                batch_size=Value(32, "ours", "one of AMVT's printed grid, 32 to 512"),
                evaluation_batch=Value(32),
                train_evaluation=Value(2048),
                optimizer=Value({"name": "amvt", "lr": 1e-3}, "ours", "the printed default, and one of the grid"),
                schedule=Value({"name": "cosine", "warmup": 0.05}, "ours", "AMVT's best schedule, with 5% of ours"),
                max_grad_norm=Value(5.0, "ours", "Zaremba et al. (2014), medium"),
                validation=Value(0, "ours", "none: the text has a validation split"),
                drop_last=Value(True, "ours", "every step has a whole batch; the paper is silent"),
                data=Value("ptb", "paper", "AMVT, Section 5.6"),
                model=Value(
                    PTB_LSTM,
                    "ours",
                    "AMVT prints 'LSTM' and a dropout of .1 to .3; the rest is Zaremba et al.'s medium model, tied",
                    {REST: "paper", **dict.fromkeys(PTB_LSTM, "ours")},
                ),
            ),
            "pretrained": Preset(
                epochs=Value(3),
                batch_size=Value(16),
                evaluations=Value(6),
                evaluation_batch=Value(16),
                train_evaluation=Value(512),
                optimizer=Value({"name": "adamw", "lr": 5e-5}),
                schedule=Value({"name": "linear"}),
                max_grad_norm=Value(1.0),
                data=Value("wikitext-2"),
                model=Value({"checkpoint": None, "block": 512}),
            ),
        },
    ),
}
