"""The stored reference trajectories, with their hyper-parameters under our names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent.parent / "reference"
FILES = sorted(path.stem for path in FOLDER.glob("*__*.json"))

# The reference's optimizer name -> ours, where they differ.
NAMES = {
    "hdk_sgd_additive": "hdk",
    "hdk_sgd_multiplicative": "hdk",
    "hypergradient_adam": "hd_adam",
    "hypergradient_sgd": "hd_sgd",
    "l4adam": "l4_adam",
    "l4mom": "l4_mom",
    "tlr_sgd": "tlr",
    "tlr_sgdm": "tlr",
    "tlr_adam": "tlr",
}
# The reference's hyper-parameter -> ours; None: what it fixes is not an option of ours (see FIXED).
RENAMED = {
    "agr_on": "agr_moments",
    "n_batches_per_epoch": "steps_per_epoch",
    "batches_per_epoch": "steps_per_epoch",
    "K": "interval",
    "adapt_flag": "adapt",
    "exclude_1d": "agr_scope",
}
FIXED = {
    "degenerated_to_sgd": True,
    "line_search_fn": "armijo",
    "always_adapt": True,
    "max_grad_norm": None,
    "direction": "(w_prev-w)/(lr*K)",
    "negative_denominator": "unchanged",
}
# A setting of the reference that our rule has for good, by the optimizer that has it.
CONSTANT = {
    "acprop": {"amsgrad": False, "fixed_decay": False},
    "nesterov": {"nesterov": True},
    "amsgrad": {"amsgrad": True},
    "l4_mom": {"adam_eps": 1e-4},
}
BASE = {"lr", "momentum", "weight_decay"}


def load(stem: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{stem}.json").read_text())


def ours(stem: str) -> tuple[str, dict[str, Any]]:
    """The name and the hyper-parameters with which ``create`` gives the optimizer of this file."""
    stored = load(stem)
    kind = stored["optimizer"]
    name = NAMES.get(kind, kind)
    hyper: dict[str, Any] = {}
    for key, value in stored["hyperparameters"].items():
        if key in CONSTANT.get(name, {}) or (key in FIXED and name != "adan"):
            assert value == CONSTANT.get(name, {}).get(key, FIXED.get(key)), f"{stem}: {key}={value!r} is not covered"
            continue
        hyper[RENAMED.get(key, key)] = tuple(value) if key == "betas" else value
    if "agr_moments" in hyper:
        hyper["agr_scope"] = "matrix" if hyper.get("agr_scope") else "all"
    if hyper.get("growth_rate") == "inf":
        hyper["growth_rate"] = float("inf")
    if name in ("tlr", "lookahead", "hdk"):
        base = {key: hyper.pop(key) for key in BASE & set(hyper)}
        base["name"] = hyper.pop("base", None) or hyper.pop("inner", "sgd")
        hyper["base"] = base
    if name == "tlr":  # the interval says it all
        assert max(1, int(hyper.pop("p") * hyper.pop("steps_per_epoch"))) == hyper["interval"]
    if name == "hdk":
        hyper |= {"rule": kind.rsplit("_", 1)[1], "average": stored["variant"]}
    if kind.startswith("hypergradient"):
        hyper["rule"] = stored["variant"]
    return name, hyper


def checkpoints(stem: str) -> dict[int, tuple[list[np.ndarray], float, float | None]]:
    """Update count -> (parameters, absolute tolerance, the adapted rate or None)."""
    record = load(stem)["problems"]["lsq"]
    return {
        int(k): (
            [np.array(params["W"]), np.array(params["b"])],
            1e-11 + 1e-14 * record["amplification"][k],
            record["aux"].get(k),
        )
        for k, params in record["params"].items()
    }


def losses(stem: str) -> list[float]:
    """The loss before every update."""
    return load(stem)["problems"]["lsq"]["loss_before_step"]
