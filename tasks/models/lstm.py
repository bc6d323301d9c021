"""The LSTM language model of the Penn Treebank kind, as a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class LSTMConfig(PreTrainedConfig):
    """The shape of an `LSTMForCausalLM`: `vocab_size` entries, an embedding of `embedding_size`, `num_layers` of
    `hidden_size`, `dropout` of the embedding, between layers and before the decoder (never inside the recurrence).
    With `tie_word_embeddings` the decoder's matrix is the embedding's; both sizes are equal then. Weights are drawn
    from U(-r, r), r = `initializer_range`; biases are 0.
    """

    model_type = "hf_optim_lstm"
    vocab_size: int = 10000
    embedding_size: int = 650
    hidden_size: int = 650
    num_layers: int = 2
    dropout: float = 0.5
    tie_word_embeddings: bool = True
    initializer_range: float = 0.05


class LSTMForCausalLM(PreTrainedModel):
    """Embedding, dropout, LSTM with dropout between its layers, dropout, decoder (Zaremba et al., 2014).

    The state begins at zero in every block: it is not carried from one block into the next.
    """

    config_class = LSTMConfig
    base_model_prefix = "lstm"
    _tied_weights_keys = {"decoder.weight": "embedding.weight"}

    def __init__(self, config: LSTMConfig) -> None:
        if config.tie_word_embeddings and config.embedding_size != config.hidden_size:
            raise ValueError(
                f"tied weights need embedding_size {config.embedding_size} to equal hidden_size {config.hidden_size}: "
                "make them equal, or set tie_word_embeddings false"
            )
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        between = config.dropout if config.num_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.embedding_size, config.hidden_size, config.num_layers, dropout=between, batch_first=True
        )
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The decoder."""
        return self.decoder

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear | nn.LSTM):
            for name, weight in module.named_parameters(recurse=False):
                if "bias" in name:
                    nn.init.zeros_(weight)
                else:
                    nn.init.uniform_(weight, -self.config.initializer_range, self.config.initializer_range)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> CausalLMOutput:
        """Logits [batch, length, vocabulary] of the next token at each place, and the mean loss over `labels`
        (int64 [batch, length], shifted here; -100 is left out). `kwargs` are the loss function's: num_items_in_batch.
        """
        hidden, _ = self.lstm(self.dropout(self.embedding(input_ids)))
        logits = self.decoder(self.dropout(hidden))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)
