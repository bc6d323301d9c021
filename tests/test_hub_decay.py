"""Rates and decays of TrainingArguments, which were meant for AdamW, under rules that mean something else by them."""

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


@pytest.mark.parametrize(
    ("name", "rate", "hyper", "warned"),
    [
        ("smaran", 2e-5, {}, True),  # a rate for AdamW, which SMARAN hardly moves with
        ("smaran", 0.03, {}, False),
        ("smaran", 2e-5, {"lr": "args"}, False),
        ("adamw", 1e-7, {}, False),  # Trainer's own rule: the argument was meant for it
        ("sgd", 1e-7, {}, False),
        ("sgd", 5e-5, {}, True),  # Trainer's default, which nobody chose, is none for SGD
        ("adan", 1e-6, {}, True),
        ("smaran", 1e-3, {}, True),  # its space begins here, a hundred times below what its paper prints
        ("smaran", 0.01, {}, False),  # of its published code
        ("prodigy", 1e-3, {}, True),  # finds its rate by itself, times this one
        ("prodigy", 0.5, {}, False),
        ("torch.optim:Adadelta", 1e-3, {}, True),
        ("sgd_agr", 2e-5, {}, True),  # has no default that the line could name
        *((name, 2e-5, {}, False) for name in ("adan", "adamw_agr", "amvt", "lion", "adafactor", "torch.optim:Adam")),
    ],
)
def test_a_rate_that_was_meant_for_another_rule_is_warned_of(name, rate, hyper, warned):
    args = TrainingArguments("out", learning_rate=rate)
    full, _, warnings = settle({"name": name, **hyper}, args, {})
    assert sum(f"learning_rate={rate:g} is in force" in line for line in warnings) == warned
    assert {**full, **full.get("base", {})}["lr"] == rate
    searched = settle({"name": name, **hyper}, args, {"learning_rate": rate})[2]
    assert not any("is in force" in line for line in searched)
