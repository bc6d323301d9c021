"""TrainingArguments.weight_decay under rules whose decay is coupled otherwise than AdamW's."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from hf_optim.hub.arguments import settle, sources


@pytest.mark.parametrize(
    ("name", "hyper", "share"),
    [
        ("amvt", {}, 0.1),  # free of the rate, as its line j
        ("amvt", {"decay": "adamw"}, None),
        ("adam", {}, 1e-3),  # a term of a gradient that Adam then normalises
        ("lamb", {}, 1e-3),  # scaled to the size of the layer
        ("radam", {"decoupled_weight_decay": True}, None),
        ("adamw", {}, None),
        ("adan", {}, None),
        ("muon", {}, None),
        ("sgd", {}, None),  # Trainer has it itself
        ({"name": "lookahead", "base": "amvt"}, {}, 0.1),
    ],
)
def test_a_decay_that_means_something_else_than_adamws_is_warned_of(name, hyper, share):
    spec = {**(name if isinstance(name, dict) else {"name": name}), **hyper}
    args = TrainingArguments("out", weight_decay=0.1, learning_rate=1e-3)
    state = torch.random.get_rng_state()
    with sources() as settled:
        warned = [line for line in settle(spec, args, {})[2] if "something else" in line]
    assert torch.equal(state, torch.random.get_rng_state())
    assert bool(warned) == (share is not None) and all(line in settled.lines for line in warned)
    assert share is None or f"takes {share:.2g} of a weight, AdamW's 0.0001" in warned[0]
    assert "weight_decay=0.1 from TrainingArguments.weight_decay" in settled.lines
    inner = spec.get("base") or spec
    given = {"name": inner, "weight_decay": 0.1} if isinstance(inner, str) else {**inner, "weight_decay": 0.1}
    assert not any("something else" in line for line in settle(given, args, {})[2])  # it was chosen for this rule
