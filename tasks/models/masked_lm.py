"""ALBERT and BERT with masks of n-grams that are drawn anew in every training step.

The masks are drawn in the forward pass, from torch's random state on the model's device, as dropout is: evaluating a
batch again, resuming a run and reading batches ahead then draw what they should. In evaluation mode, and without
`words`, the batch's own masks stand.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AlbertForPreTraining, BertForPreTraining

from hf_optim.tasks.data.pairs import Masking, mask_ngrams


class NgramMasked:
    """A model's forward pass with masks drawn anew in training; `config.masking` holds the fields of `Masking`."""

    accepts_loss_kwargs = False
    order_argument: str
    """What the model's own forward pass calls the label of the sentences' order."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        words: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sentence_order_label: torch.Tensor | None = None,
    ) -> Any:
        """See `_redrawn` for `words`; with both labels, the loss is the sum of both means (nats)."""
        input_ids, labels = _redrawn(self, input_ids, token_type_ids, words, labels)
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            labels=labels,
            **{self.order_argument: sentence_order_label},
        )


class NgramMaskedAlbertForPreTraining(NgramMasked, AlbertForPreTraining):  # type: ignore[misc]
    """ALBERT with an MLM and a sentence-order head."""

    order_argument = "sentence_order_label"


class NgramMaskedBertForPreTraining(NgramMasked, BertForPreTraining):  # type: ignore[misc]
    """BERT with its MLM and its sentence-pair head, the latter on sentence order."""

    order_argument = "next_sentence_label"


def _redrawn(
    model: Any,
    input_ids: torch.Tensor,
    segments: torch.Tensor | None,
    words: torch.Tensor | None,
    labels: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`input_ids` and `labels` [batch, length] with new masks if `model` trains.

    `words` [batch, length] numbers the word of each token, negative for special ones. What the batch's own masks hide
    stands in `labels`.
    """
    if not model.training or words is None or labels is None:
        return input_ids, labels
    whole = torch.where(labels >= 0, labels, input_ids)
    segments = torch.zeros_like(whole) if segments is None else segments
    return mask_ngrams(whole, words, segments, Masking(**model.config.masking))
