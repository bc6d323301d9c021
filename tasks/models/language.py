"""Language models of a folder with their own tokenizer, and the tokenizer kept with every checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from hf_optim.errors import UserError
from hf_optim.experiment.checkpoint import from_folder
from hf_optim.tasks.data.saved_tokenizer import read_tokenizer
from hf_optim.tasks.models.lstm import LSTMConfig, LSTMForCausalLM

# So that transformers finds our LSTM by its model_type.
AutoConfig.register(LSTMConfig.model_type, LSTMConfig, exist_ok=True)
AutoModelForCausalLM.register(LSTMConfig, LSTMForCausalLM, exist_ok=True)


def next_tokens(logits: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every token but the first, each [batch, length - 1]: nats (float64), whether it counts (label not -100),
    and whether it is the likeliest.
    """
    scores = logits[0] if isinstance(logits, tuple) else logits
    truth, scores = tokens[:, 1:], scores[:, :-1].float()
    counts = truth != -100
    nats = torch.nn.functional.cross_entropy(scores.flatten(0, 1), truth.flatten(), reduction="none")
    return nats.view(truth.shape).double(), counts, (scores.argmax(-1) == truth) & counts


class KeepTokenizer(TrainerCallback):
    """Writes `tokenizer` into every checkpoint of a run."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beside the weights, on the process that writes them."""
        if state.is_world_process_zero:
            self.tokenizer.save_pretrained(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def tokenizer_of(checkpoint: str | None) -> Any:
    """The tokenizer in a checkpoint's folder."""
    if not checkpoint:
        raise UserError("model 'pretrained' needs --model.checkpoint DIR: a folder of save_pretrained, with tokenizer")
    folder = Path(str(checkpoint))
    if not (folder / "config.json").is_file():
        raise UserError(f"checkpoint: {folder} holds no model (no config.json): give a folder of save_pretrained")
    return read_tokenizer(folder)


def pretrained(checkpoint: str, facts: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a folder, in float32."""
    network: Any = from_folder(AutoModelForCausalLM, Path(checkpoint), dtype=torch.float32)
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(network.forward).parameters.values()):
        raise UserError(
            f"checkpoint: {type(network).__name__} takes no further arguments in forward: it is not supported"
        )
    fits(network, facts)
    mark = getattr(network.config, "tokenizer_fingerprint", None)
    if mark not in (None, facts["fingerprint"]):
        raise UserError(f"checkpoint: the tokenizer in {checkpoint} is not the one that its model was trained with")
    return settled(network)


def settled(model: PreTrainedModel) -> PreTrainedModel:
    """The model, told that nothing is generated while it trains, and that its loss is of the next tokens: what
    transformers takes for GPT-2 anyway, with a warning that nobody had said so."""
    model.config.use_cache = False
    model.loss_type = "ForCausalLM"
    return model


def fits(model: PreTrainedModel, facts: Mapping[str, Any]) -> None:
    """Raise a `UserError` if the model has too few embeddings or positions for the data."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if rows < facts["vocabulary"]:
        raise UserError(
            f"checkpoint: its model knows {rows} tokens, but the tokenizer has {facts['vocabulary']}: "
            "they do not belong together"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and positions < facts["block"]:
        raise UserError(
            f"checkpoint: its model takes {positions} tokens, a block has {facts['block']}: set --model.block"
        )
