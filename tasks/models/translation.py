"""The translation Transformer: Marian's layers with a loss that counts tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel
from transformers.modeling_outputs import Seq2SeqLMOutput

IGNORED = -100


class TranslationConfig(MarianConfig):
    """Marian's values (post-norm, sinusoidal positions) and

    Args:
        label_smoothing: share of the target probability that is spread over the vocabulary in training, in [0, 1).
        initialisation: "normal" (Marian's: deviation 0.02) or "glorot" (uniform, by each matrix's shape).
        tokenizers: fingerprint of the two tokenizers that the ids belong to.
    """

    model_type = "hf_optim_translation"
    label_smoothing: float = 0.0
    initialisation: str = "normal"
    tokenizers: str = ""


class Translation(MarianMTModel):
    """Encoder and decoder with two vocabularies.

    The loss is the sum of the target tokens' cross-entropies (nats) over the number of target tokens of the whole
    optimizer step when Trainer tells it (`num_items_in_batch`), so that accumulation and several processes do not
    change it; over those of the batch otherwise. Smoothed in training only.
    """

    config_class = TranslationConfig
    accepts_loss_kwargs = True

    def __init__(self, config: TranslationConfig) -> None:
        super().__init__(config)
        if config.initialisation == "glorot":
            # Here, since the inner model has initialised itself by Marian's rule; what from_pretrained reads comes
            # later. Embeddings too, positions not.
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.requires_grad:
                    nn.init.xavier_uniform_(module.weight)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits [batch, target length, vocabulary] of `input_ids` [batch, source length].

        With `labels` [batch, target length] (-100: no token), the loss, and the decoder reads the labels moved right
        by one.
        """
        if labels is None:
            return super().forward(  # type: ignore[no-any-return]
                input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, **kwargs
            )
        if decoder_input_ids is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        output = super().forward(
            input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        )
        logits = output.logits
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.config.label_smoothing if self.training else 0.0,
        )
        tokens = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return Seq2SeqLMOutput(loss=total / tokens, logits=logits)
