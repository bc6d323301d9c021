"""What decides the result of one run, checked and hashed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hf_optim.core.private import strings
from hf_optim.core.validate import closest, no_choice
from hf_optim.errors import UserError
from hf_optim.hub import schedules

SIZES = ("smoke", "small", "paper")
OVERRIDES: dict[str, type] = {
    "steps": int,
    "epochs": int,
    "passes": int,
    "seconds": float,
    "batch_size": int,
    "eval_every": int,
    "max_grad_norm": float,
    "gradient_accumulation_steps": int,
    "train_curve": int,
    "sharpness": int,
    "init_seed": int,
    "order_seed": int,
    "split_seed": int,
    "patience": int,
    "precision": str,
    "compile_model": bool,
    "workers": int,
}
FROM_ZERO = ("max_grad_norm", "init_seed", "order_seed", "split_seed", "workers")
#: processes that read ahead; a file that asks for thousands would bring the machine down
MOST_WORKERS = 256
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
AUTO = "auto"
#: overrides that change how long a run takes and none of its numbers: no part of what it is
UNSEEN = ("workers",)
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class RunSpec:
    """One run: everything that decides its result.

    Args:
        task: a task's name (`"vision"`) or `"file.py:NAME"`.
        model: one of the task's models; None takes the first.
        size: `"smoke"` (seconds), `"small"` (embedded data) or `"paper"`.
        optimizer: `{"name": "smaran", "gamma": 0.9}`, nested for wrappers; a bare name is taken too.
        seed: of the initial weights, of the order of batches and of what else is drawn (dropout); the same for every
            optimizer of a comparison.
        data: an embedded data set's name, one of the Hub's that the task knows, or a path to your own files; None takes
            the preset's.
        schedule: see `hf_optim.hub.schedules`; None takes the preset's.
        overrides: of the preset: steps or epochs; passes (forward and backward ones together) or seconds of training,
            which end the run, and its schedule with it, if they are spent before its steps are; batch_size (samples a
            step, over all processes), eval_every (steps; default: the preset's), max_grad_norm (0: no clipping),
            gradient_accumulation_steps, train_curve (so many train samples are evaluated whenever validation is),
            init_seed and order_seed (of the initial weights and of the order of batches, in place of `seed`),
            split_seed (train on a bootstrap sample of the train split, drawn with it), sharpness (of so many samples),
            patience (end after so many evaluations without a lower validation loss), precision (one of `PRECISIONS`;
            see `hf_optim.experiment.precision`), compile_model (by torch.compile), workers (processes that read the
            data ahead; 0: none). `gradient_accumulation_steps: auto` takes as few as fit into the device's memory.
        options: in place of values of the preset's model (`hidden_size`), or one of the task's own (`checkpoint`).
        pruning: [step, value] pairs: the run is stopped by its evaluation after so many steps if the best validation
            value of the primary metric so far is worse than this. A stopped run is recorded as failed and `pruned`.

    Raises:
        UserError: a value of the wrong type, an unknown override or schedule. Names are looked up by `task.check_run`.
    """

    task: str
    model: str | None = None
    size: str = "small"
    optimizer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    data: str | None = None
    schedule: dict[str, Any] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    pruning: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str):
            object.__setattr__(self, "optimizer", {"name": self.optimizer})
        if not isinstance(self.optimizer, dict) or not isinstance(self.optimizer.get("name"), str):
            raise UserError(
                f"optimizer: expected a mapping with a name, as {{name: adamw, lr: 0.001}}, got {self.optimizer!r}"
            )
        check_parts(self.optimizer)
        if not isinstance(self.task, str) or not self.task:
            raise UserError(f"task: expected a task's name, got {self.task!r}")
        if self.size not in SIZES:
            raise UserError(no_choice("size", self.size, SIZES))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise UserError(f"seed: expected an integer from 0 to 2**32-1, got {self.seed!r}")
        for name in ("model", "data"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UserError(f"{name}: expected a text, got {value!r}")
        if isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", {"name": self.schedule})
        if self.schedule is not None:
            schedules.check_schedule(self.schedule)
        if not isinstance(self.options, dict) or not all(isinstance(key, str) for key in self.options):
            raise UserError(f"options: expected a mapping, as {{hidden_size: 128}}, got {self.options!r}")
        pairs = self.pruning if isinstance(self.pruning, list) else [None]
        if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int) for pair in pairs):
            raise UserError(f"pruning: expected a list of [step, value], got {self.pruning!r}")
        for text in strings([self.task, self.model, self.data, self.optimizer, self.options, self.schedule]):
            if not text.isascii() and _HALF.search(text):  # of a file's name that is not UTF-8
                raise UserError(f"run: {text!r} holds half a character, which no record keeps: rename the file")
            if "\0" in text:  # no path has one, and what is given one fails in a way of its own
                raise UserError(f"run: {text!r} holds a NUL character")
        check_overrides(self.overrides)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary; `RunSpec.from_dict` is its inverse."""
        values = {f.name: _copied(getattr(self, f.name)) for f in fields(self)}
        for later in ("options", "pruning"):  # so that a run without any keeps the name that it had before these
            if not values[later]:
                del values[later]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSpec:
        """The spec of a dictionary; an unknown or missing key raises a `UserError` that names the valid ones."""
        valid = [f.name for f in fields(cls)]
        unknown = [key for key in values if key not in valid]
        if unknown:
            near = closest(str(unknown[0]), valid)
            raise UserError(f"run: unknown key {unknown[0]!r}{near}; valid: {', '.join(valid)}")
        for key in ("task", "optimizer"):
            if key not in values:
                raise UserError(f"run: missing key {key!r}")
        return cls(**values)

    @property
    def id(self) -> str:
        """See `id_of`."""
        return id_of(self.to_dict())


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Raises UserError for a key that no run has, and for a value that it cannot take."""
    if not isinstance(overrides, dict):
        raise UserError(f"overrides: expected a mapping, got {overrides!r}")
    for key, value in overrides.items():
        if key not in OVERRIDES:
            near = closest(str(key), OVERRIDES)
            raise UserError(f"overrides: unknown key {key!r}{near}; valid: {', '.join(OVERRIDES)}")
        if key == "precision":
            if value not in PRECISIONS:
                raise UserError(f"overrides: {no_choice('precision', value, PRECISIONS)}")
            continue
        if key == "compile_model":
            if not isinstance(value, bool):
                raise UserError(f"overrides: compile_model must be true or false, got {value!r}")
            continue
        if key == "gradient_accumulation_steps" and value == AUTO:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float) if OVERRIDES[key] is float else int):
            raise UserError(f"overrides: {key} must be a number ({OVERRIDES[key].__name__}), got {value!r}")
        if not abs(value) < 2**63:  # NaN, too: what is recorded has to be read again
            raise UserError(f"overrides: {key} must be a finite number of at most 64 bits, got {value!r}")
        if key == "seconds" and value <= 0:
            raise UserError(f"overrides: seconds must be above 0, got {value!r}")
        if key != "seconds" and value < (least := 0 if key in FROM_ZERO else 1):
            raise UserError(f"overrides: {key} must be {least} or more, got {value!r}")
        if key == "workers" and value > MOST_WORKERS:
            raise UserError(f"overrides: workers must be at most {MOST_WORKERS}, got {value!r}")
        if key.endswith("_seed") and value >= 2**32:
            raise UserError(f"overrides: {key} must be below 2**32, got {value!r}")
    if "steps" in overrides and "epochs" in overrides:
        raise UserError("overrides: steps and epochs both bound the run; give one of them")


def check_parts(optimizer: Mapping[str, Any]) -> None:
    """Raise a UserError unless the parts of a specification, what it wraps and its transform, are names or mappings as
    it is one itself: whoever tells of a run looks into them.
    """
    for key in ("base", "grad_transform"):
        part = optimizer.get(key)
        named = part.get("name", "") if isinstance(part, Mapping) else "" if part is None else part
        if not isinstance(named, str):
            raise UserError(f"optimizer: {key} is a name or a mapping with a name, got {part!r}")
        if isinstance(part, Mapping):
            check_parts(part)


def id_of(values: Mapping[str, Any]) -> str:
    """The id of the run with this specification: 12 hexadecimal characters of the SHA-256 of its canonical JSON without
    `UNSEEN`. It is always computed, and never taken from a file.
    """
    overrides = values.get("overrides")
    if isinstance(overrides, Mapping) and any(key in overrides for key in UNSEEN):
        values = {**values, "overrides": {key: value for key, value in overrides.items() if key not in UNSEEN}}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _copied(value: Any) -> Any:
    """A copy of plain data; tenfold faster than `dataclasses.asdict`, which a study asks for thousands of times."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
