"""Language models of a folder with their own tokenizer, and the tokenizer kept with every checkpoint."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from hf_optim.errors import UserError, one_line
from hf_optim.experiment.checkpoint import from_folder
from hf_optim.experiment.evaluator import quiet
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
    _check_written(network, checkpoint)
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(network.forward).parameters.values()):
        raise UserError(
            f"checkpoint: {type(network).__name__} takes no further arguments in forward: it is not supported"
        )
    fits(network, facts)
    mark = getattr(network.config, "tokenizer_fingerprint", None)
    if mark not in (None, facts["fingerprint"]):
        raise UserError(f"checkpoint: the tokenizer in {checkpoint} is not the one that its model was trained with")
    return settled(network)


def _check_written(model: PreTrainedModel, checkpoint: str) -> None:
    """Raise a `UserError` for a model whose files hold what transformers reads and cannot write again, in its
    config.json or generation_config.json: the run would fail at its first checkpoint.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            model.save_pretrained(folder, state_dict={})
    except OSError:
        raise
    except Exception as error:  # of any kind
        why = f"cannot be written with a run's checkpoints: {one_line(error)}"
        raise UserError(f"checkpoint: {checkpoint}: what its JSON files say of the model {why}") from error


def settled(model: PreTrainedModel) -> PreTrainedModel:
    """The model, told that nothing is generated while it trains, and that its loss is of the next tokens: what
    transformers takes for GPT-2 anyway, with a warning that nobody had said so."""
    model.config.use_cache = False
    model.loss_type = "ForCausalLM"
    return model


def check_heads(config: Any) -> None:
    """Raise a ValueError for heads of a Llama with which no step could be made: transformers looks at some alone."""
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if min(heads, shared) < 1 or heads % shared:
        raise ValueError(f"num_attention_heads {heads} must be a multiple of num_key_value_heads {shared}, 1 or more")
    if config.head_dim % 2:
        raise ValueError(
            f"hidden_size {config.hidden_size} over num_attention_heads {heads} must be even: positions turn pairs"
        )


def fits(model: PreTrainedModel, facts: Mapping[str, Any]) -> None:
    """Raise a `UserError` if the model has too few embeddings or positions for the data, or is no causal one."""
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
            f"checkpoint: its model takes {positions} tokens, a sample has {facts['block']}: set --model.block (of "
            "finetune: --model.length)"
        )
    if _looks_ahead(model, min(rows, facts["vocabulary"]), min(8, facts["block"])):
        raise UserError(
            f"checkpoint: {type(model).__name__} sees the tokens that it is to predict, as its config.json has it "
            "(is_decoder, is_causal): its loss would say nothing"
        )


@torch.no_grad()
def _looks_ahead(model: PreTrainedModel, tokens: int, length: int) -> bool:
    """Whether other tokens at the end change what is predicted before them, by its own weights or by any: weights may
    hide it until they are trained. False of a model that cannot be run here, which is said where it is.
    """
    ids = torch.arange(length, device=model.device)[None] % tokens
    training, half = model.training, length // 2
    other = torch.cat([ids[:, :half], (ids[:, half:] + 1) % tokens], dim=1)
    model.eval()
    try:
        for weights in ({}, _any_weights(model)):
            a, b = (functional_call(model, weights, (), {"input_ids": row}).logits[:, :half] for row in (ids, other))
            rounding = 8 * torch.finfo(a.dtype).eps  # experts get other numbers of tokens
            if (a - b).abs().max() > rounding * a.abs().max():
                return True
    except UserError:  # of a pass without end
        raise
    except Exception:  # of any kind
        return False
    finally:
        model.train(training)
    return False


def _any_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Random numbers in the place of all parameters, which share one memory: a copy of a large model finds no room."""
    named = dict(model.named_parameters())
    drawn = torch.Generator().manual_seed(0)
    numbers = 0.05 * torch.randn(max(p.numel() for p in named.values()), generator=drawn)
    return {name: numbers[: p.numel()].view(p.shape).to(p.device, p.dtype) for name, p in named.items()}
