"""Which hyper-parameters every optimizer is compared with its twin under; the first of each name is nearly its default.

A variant is the keywords of ``create``. ``"groups": True`` splits the tensors in two parameter groups that differ in
what ``GROUPS`` says; ``"schedule"``, step -> factor, changes the rates on the way; ``"on"`` names the one problem that
a variant is for.
"""

from __future__ import annotations

from typing import Any

Variant = dict[str, Any]

AGR: list[Variant] = [
    {},
    {"agr_moments": "all"},
    {"agr_moments": "m"},
    {"agr_scope": "all"},
    {"agr_moments": "all", "agr_scope": "all"},
    {"agr_steps": 7},
    {"agr_steps": 0},
    {"agr_moments": "all", "agr_steps": 7, "agr_scope": "all"},
    {"groups": "agr"},
]
ADAM: list[Variant] = [{}, {"lr": 0.03, "betas": (0.5, 0.8), "eps": 1e-3}, {"weight_decay": 0.1}, {"groups": True}]
CLIMB: list[Variant] = [{"maximize": True, "weight_decay": 0.1, "betas": (0.5, 0.8)}]
DECOUPLED: Variant = {"decoupled_weight_decay": True, "weight_decay": 0.1}
BASES: list[Variant] = [
    {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    {"name": "adam", "lr": 0.01, "betas": (0.6, 0.9)},
]


def over(*lists: list[Variant], **fixed: Any) -> list[Variant]:
    """All the variants of the lists, each with the fixed settings that it does not set itself."""
    return [fixed | variant for variants in lists for variant in variants]


def wrapped(bases: list[Variant], settings: list[Variant]) -> list[Variant]:
    return [setting | {"base": base} for base in bases for setting in settings]


CALM: list[Variant] = [BASES[0] | {"lr": 0.005, "momentum": 0.5}, BASES[1] | {"lr": 0.003}]
TLR: list[Variant] = [
    {"interval": 3},
    {"interval": 1, "gamma": 0.8, "cap": 1.2},
    {"p": 0.2, "steps_per_epoch": 21},
    {"p": 0.2, "steps_per_epoch": 3, "gamma": 0.1, "cap": 1.1},
    {"interval": 2, "gamma": 1.0, "cap": 1.3},
    {"interval": 3, "scope": "group", "groups": True},
    {"interval": 3, "scope": "tensor"},
    {"interval": 3, "groups": True},
    {"interval": 2, "scope": "tensor", "groups": True},
    {"interval": 3, "schedule": {4: 0.5, 10: 0.1, 13: 2.0}},
]

VARIANTS: dict[str, list[Variant]] = {
    "smaran": [
        {},
        {"gamma": 0.5, "lr": 0.03, "weight_decay": 0.3},
        {"norm_scope": "tensor", "groups": True},
        {"eps": 0.1, "groups": True},
        {"norm_scope": "tensor", "eps": 0.1, "gamma": 0.0},
        {"schedule": {4: 0.3, 9: 5.0}},
    ],
    "adamw_agr": over(AGR, ADAM, [{"agr_moments": "all", "weight_decay": 0.1, "groups": True}]),
    "adan_agr": over(
        AGR,
        [
            {"weight_decay": 0.1, "no_prox": True},
            {"weight_decay": 0.1, "groups": True},
            {"max_grad_norm": 0.5},
            {"max_grad_norm": 0.5, "agr_moments": "all", "agr_scope": "all"},
            {"restart_every": 6, "agr_moments": "m"},
        ],
        lr=0.01,
    ),
    "sgd_agr": over(
        AGR,
        [
            {"momentum": 0.9},
            {"momentum": 0.9, "weight_decay": 0.1, "groups": True},
            {"weight_decay": 0.1, "agr_scope": "all"},
        ],
        lr=0.05,
    ),
    "tlr": wrapped(CALM, TLR)
    + [
        {"interval": 1, "lookahead": True, "base": CALM[0]},
        {"interval": 1, "lookahead": True, "base": CALM[1]},
        {"interval": 1, "lookahead": True, "gamma": 1.0, "cap": 2.0, "base": {"name": "sgd", "lr": 0.01}},
        {"interval": 1, "lookahead": True, "scope": "tensor", "base": CALM[0]},
        {"interval": 3, "lookahead": True, "base": CALM[0]},
        {"interval": 3, "base": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}, "groups": True},
        {"interval": 3, "base": {"name": "smaran", "lr": 0.03}},
        {"interval": 4, "base": {"name": "amvt", "lr": 0.01}},
        {"interval": 1, "guards": False, "gamma": 0.8, "cap": 1.2, "base": CALM[0]},
        {"interval": 2, "guards": False, "base": CALM[1]},
    ],
    "tlr_sgd": [
        {"base": {"lr": 0.02}, "interval": 3},
        {"base": {"lr": 0.002, "weight_decay": 0.1}, "steps_per_epoch": 12},
    ],
    "tlr_sgdm": [{"base": {"lr": 0.002}, "interval": 3}, {"base": {"lr": 0.005, "momentum": 0.5}, "interval": 4}],
    "tlr_adam": [{"base": {"lr": 0.02}, "interval": 3, "gamma": 0.2}],
    "tlr_adamw": [{"base": {"lr": 0.02, "weight_decay": 0.3}, "interval": 3, "scope": "tensor"}],
    "amvt": over(
        [
            {},
            {"momentum": "raw"},
            {"eps_mode": "outside", "eps": 1e-2},
            {"weight_decay": 0.01},
            {"weight_decay": 0.1, "decay": "adamw"},
            {"clip": 0.5},
            {"schedule": {5: 0.2}},
            {"eps": 1e-2, "betas": (0.5, 0.8, 0.7)},
            {"clip": 1e3},
            {"clip": 1.0, "momentum": "raw", "weight_decay": 0.02, "eps": 1e-3},
            {"weight_decay": 0.01, "groups": True},
        ],
        lr=0.01,
    ),
    "adan": over(
        [
            {},
            {"weight_decay": 0.1},
            {"weight_decay": 0.1, "no_prox": True},
            {"max_grad_norm": 0.5},
            {"restart_every": 6},
            {"max_grad_norm": 1e3, "eps": 1e-2},
            {"betas": (0.5, 0.6, 0.7), "eps": 1e-2},
            {"groups": True},
            {"max_grad_norm": 0.7, "eps": 1e-2, "restart_every": 5},
        ],
        lr=0.01,
    ),
    "acprop": over(
        ADAM,
        [
            {"rectify": False},
            {"rectify": False, "momentum_update": True},
            {"momentum_update": True},
            {"rectify": False, "weight_decouple": False, "weight_decay": 0.1, "eps": 1e-3},
            {"weight_decouple": False, "weight_decay": 0.1},
            {"eps": 1e-2},
            {"eps": 1e-2, "rectify": False, "momentum_update": True},
        ],
    ),
    "adabelief": over(
        ADAM,
        [
            {"rectify": False},
            {"rectify": False, "amsgrad": True, "betas": (0.5, 0.6)},
            {"fixed_decay": True, "weight_decay": 0.01},
            {"weight_decouple": False, "weight_decay": 0.1},
            {"rectify": False, "eps": 1e-2, "amsgrad": True},
            {"eps": 1e-2},
        ],
    ),
    "adabound": over(
        ADAM,
        [
            {"amsbound": True, "betas": (0.5, 0.6)},
            {"final_lr": 0.01, "gamma": 0.1},
            {"final_lr": 0.01, "gamma": 0.05, "schedule": {5: 0.2}},
            {"final_lr": 0.003, "gamma": 0.05, "amsbound": True, "weight_decay": 0.1},
        ],
    ),
    "yogi": over(ADAM, [{"initial_accumulator": 0.1}, {"initial_accumulator": 1.0, "betas": (0.7, 0.5)}]),
    "padam": over(
        ADAM,
        [
            {"partial": 0.125},
            {"amsgrad": False, "partial": 0.4, "betas": (0.5, 0.6)},
            {"partial": 0.5, "betas": (0.5, 0.6)},
        ],
        lr=0.02,
    ),
    "lamb": over(ADAM, [{"bias_correction": False}, {"bias_correction": False, "weight_decay": 0.1}], lr=0.01),
    "lion": [{"lr": 0.01}, {"lr": 0.01, "betas": (0.5, 0.7), "weight_decay": 0.1}, {"lr": 0.01, "groups": True}],
    "prodigy": over(
        [
            {},
            {"weight_decay": 0.1},
            {"weight_decay": 0.1, "decouple": False},
            {"use_bias_correction": True},
            {"safeguard_warmup": True, "use_bias_correction": True},
            {"beta3": 0.5},
            {"growth_rate": 1.02, "d0": 1e-6},
            {"groups": "idle"},
            {"groups": "idle", "safeguard_warmup": True},
            {"d_coef": 0.3},
            {"slice_p": 3},
            {"lr": 0.5},
            {"d0": 1e-3, "eps": 1e-2, "betas": (0.5, 0.8)},
            {"groups": "weight_decay"},
        ],
        d0=1e-4,
    ),
    "decgd": [
        {"lr": 0.05},
        {"lr": 0.1, "ams": True},
        {"lr": 0.05, "x0": "0"},
        {"lr": 0.05, "x0": "0", "ams": True},
        {"lr": 0.05, "c": 0.1, "gamma": 0.5},
        {"lr": 0.05, "groups": True},
    ],
    "lookahead": wrapped(
        BASES,
        [
            {},
            {"k": 3, "alpha": 0.8},
            {"k": 3, "groups": True},
            {"k": 3, "schedule": {5: 0.2}},
            {"k": 3, "pullback_momentum": "reset"},
            {"k": 4, "pullback_momentum": "pullback"},
        ],
    ),
    "lookahead_sgd": [{"base": {"lr": 0.1}}, {"base": {"lr": 0.1, "momentum": 0.9}, "alpha": 0.3, "k": 2}],
    "lookahead_adam": [{"base": {"lr": 0.02}}, {"base": {"lr": 0.02}, "k": 2, "pullback_momentum": "reset"}],
    "lookahead_amvt": [{"base": {"lr": 0.02}}, {"base": {"lr": 0.02}, "k": 3, "pullback_momentum": "pullback"}],
    "l4_adam": [
        {},
        {"fraction": 0.3, "minloss_factor": 0.5, "init_factor": 0.5, "forget": 10.0},
        {"eps": 0.1, "adam_eps": 0.01},
    ],
    "l4_mom": [{}, {"fraction": 0.3, "minloss_factor": 0.5, "init_factor": 0.5, "forget": 10.0}, {"eps": 0.1}],
    "sps": [
        {},
        {"c": 0.2, "gamma": 1.5, "steps_per_epoch": 7, "init_step_size": 0.1, "eps": 0.01},
        {"adapt": "constant"},
        {"adapt": "constant", "eta_max": 0.3, "f_star": 0.05},
        {"adapt": "constant", "f_star": 0.9},
        {"f_star": 0.05},
    ],
    "sls": [
        {},
        {"c": 0.6, "beta_b": 0.7, "gamma": 3.0, "steps_per_epoch": 7},
        {"reset_option": 0, "c": 0.5},
        {"reset_option": 2, "init_step_size": 2.0, "c": 0.5},
        {"eta_max": 0.7, "steps_per_epoch": 3},
        {"c": 0.9, "init_step_size": 5.0, "reset_option": 0},
    ],
    "ponos": [
        {},
        {"c": 0.7, "c_p": 0.01, "delta": 0.7},
        {"save_backtracks": False, "c_p": 0.02},
        {"zhang_xi": 0.3, "max_eta": 2.0, "c_p": 0.02},
        {"f_star": 0.05, "c_p": 0.3},
        {"min_eta": 0.9, "c_p": 2.0},
    ],
    "hd_sgd": over(
        [
            {},
            {"rule": "multiplicative", "hypergrad_lr": 0.05},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
            {"groups": "weight_decay"},
            {"rule": "multiplicative", "hypergrad_lr": 0.05, "momentum": 0.5, "weight_decay": 0.1},
        ],
        lr=0.02,
        hypergrad_lr=1e-3,
    ),
    "hd_adam": over(
        [
            {},
            {"rule": "multiplicative", "hypergrad_lr": 0.05},
            {"weight_decay": 0.1},
            {"betas": (0.5, 0.8), "eps": 1e-2},
            {"groups": "weight_decay"},
        ],
        lr=0.01,
        hypergrad_lr=1e-4,
    ),
    "hdk": wrapped(
        CALM,
        [
            {"eta": 1e-3, "interval": 3},
            {"eta": 1e-4, "interval": 3, "average": "sum"},
            {"eta": 0.1, "interval": 2, "rule": "multiplicative"},
            {"eta": 0.1, "interval": 2, "rule": "multiplicative", "average": "sum"},
        ],
    ),
    "sgd": [
        {"lr": 0.05},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"lr": 0.05, "groups": True},
        {"lr": 0.002, "momentum": 0.5, "maximize": True, "weight_decay": 0.1},
    ],
    "sgdm": [{"lr": 0.05}, {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1}],
    "nesterov": [{"lr": 0.05}, {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1}],
    "adagrad": [
        {},
        {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 0.01},
        {"maximize": True, "weight_decay": 0.1},
    ],
    "rmsprop": [
        {},
        {"momentum": 0.9, "centered": True, "alpha": 0.8, "weight_decay": 0.1, "eps": 0.01},
        {"maximize": True, "weight_decay": 0.1, "momentum": 0.5, "alpha": 0.9},
    ],
    "adam": over(ADAM, CLIMB, [{"amsgrad": True, "betas": (0.5, 0.6)}, DECOUPLED]),
    "amsgrad": over(ADAM, [{"betas": (0.5, 0.6)}]),
    "adamw": over(ADAM, CLIMB, [{"amsgrad": True, "betas": (0.5, 0.6)}]),
    "radam": over(ADAM, CLIMB, [DECOUPLED]),
    "nadam": over(ADAM, CLIMB, [DECOUPLED, {"momentum_decay": 0.5}]),
    "tlr_legacy": wrapped(
        CALM,
        [
            {"interval": 3, "gamma": 0.2},
            {"p": 1 / 3, "steps_per_epoch": 10, "gamma": 0.1},
            {"p": 0.1, "steps_per_epoch": 5, "gamma": 0.2},
            {"interval": 1, "gamma": 0.02},
            {"interval": 3, "gamma": 0.15, "groups": True},
        ],
    ),
}

# The second group's overrides; the second half of the tensors is in it.
GROUPS: dict[str, Any] = {
    "agr": {"agr": False},
    "idle": {"lr": 0.0},
    "weight_decay": {"weight_decay": 0.2},
    "muon": {"momentum": 0.5, "adamw_lr": 0.02, "adamw_weight_decay": 0.4},
}


def groups(name: str, variant: Variant, n: int, defaults: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The parameter groups of a variant for ``n`` tensors: ``{"at": indices, **overrides}``; None for one group."""
    kind = variant.get("groups")
    if not kind:
        return None
    own = defaults | variant.get("base", {}) | variant
    second = GROUPS[kind] if isinstance(kind, str) else {"lr": own["lr"] * 0.5}
    if kind is True and "weight_decay" in own:
        second = second | {"weight_decay": 0.3}
    half = (n + 1) // 2
    return [{"at": list(range(half))}, {"at": list(range(half, n))} | second]


def hyper(variant: Variant) -> Variant:
    """The keywords for ``create``."""
    return {key: value for key, value in variant.items() if key not in ("groups", "on")}
