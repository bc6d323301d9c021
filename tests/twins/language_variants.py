"""The variants of the rules that language models are trained with; see `twins.variants`."""

from __future__ import annotations

from twins.variants import ADAM, VARIANTS, over

VARIANTS |= {
    "signum": [{"lr": 0.01}, {"lr": 0.01, "beta": 0.5, "weight_decay": 0.1}, {"lr": 0.01, "groups": True}],
    "ademamix": over(
        [
            {},
            {"T": 8, "alpha": 2.0, "weight_decay": 0.1},
            {"T": 40, "betas": (0.6, 0.8, 0.95), "eps": 1e-2},
            {"weight_decay": 0.1, "groups": True},
        ],
        lr=0.003,
    ),
    "mars": over(
        [
            {},
            {"gamma": 0.3, "betas": (0.7, 0.9), "betas_1d": (0.5, 0.6), "eps": 1e-2},
            {"weight_decay": 0.1, "groups": True},
        ],
        lr=0.01,
    ),
    "adopt": over(
        [{}, {"betas": (0.5, 0.8), "eps": 0.3}, {"weight_decay": 0.1, "groups": True}, {"schedule": {5: 0.2}}], lr=0.01
    ),
    "nadamw": over(ADAM, [{"momentum_decay": 0.1, "betas": (0.5, 0.8)}, {"momentum_decay": 0.0}]),
    "cautious_adamw": over(ADAM, lr=0.01),
    "cautious_lion": [
        {"lr": 0.01},
        {"lr": 0.01, "betas": (0.5, 0.7), "weight_decay": 0.1},
        {"lr": 0.01, "groups": True},
    ],
    "schedule_free_adamw": over(
        [
            {},
            {"betas": (0.6, 0.8), "eps": 1e-2, "weight_decay": 0.1},
            {"warmup_steps": 6, "r": 0.5, "weight_lr_power": 1.0},
            {"weight_decay": 0.1, "groups": True},
            {"schedule": {4: 0.3, 9: 2.0}},
        ],
        lr=0.02,
    ),
    "schedule_free_sgd": over(
        [
            {},
            {"momentum": 0.5, "weight_decay": 0.1},
            {"warmup_steps": 6, "r": 0.5, "weight_lr_power": 1.0},
            {"weight_decay": 0.1, "groups": True},
            {"schedule": {4: 0.3, 9: 2.0}},
        ],
        lr=0.1,
    ),
    "muon": [
        {},
        {"lr": 0.005, "momentum": 0.6, "nesterov": False, "weight_decay": 0.3, "ns_steps": 2},
        {"lr": 0.01, "adjust_lr": "match_rms_adamw", "adamw_lr": 0.02, "adamw_betas": (0.5, 0.7), "adamw_eps": 1e-2},
        {"ns_dtype": "fp32", "adamw_lr": 0.01, "adamw_weight_decay": 0.5},
        {"groups": "muon"},
    ],
    "soap": over(  # only sides on which the first gradient has full rank are rotated: others have no one eigenbasis
        [
            {"max_dim": 4},
            {"frequency": 3, "betas": (0.6, 0.8), "eps": 1e-2, "on": "tanh"},
            {"frequency": 1, "weight_decay": 0.1, "groups": True, "on": "tanh"},
            {"on": "tanh"},
            {"max_dim": 0},
        ],
        lr=0.003,
        max_dim=5,
    ),
    "adafactor": [
        {},
        {"lr": 0.3, "beta2_decay": -0.5, "d": 0.3, "weight_decay": 0.1},
        {"eps1": 1e-1, "eps2": 2.0},
        {"weight_decay": 0.1, "groups": True},
    ],
}
