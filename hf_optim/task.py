"""What a task is, and one run of it.

A task is one object in one file, `tasks/NAME.py`, attribute `TASK`: its data, models, metrics and three sizes of
budget. A run is a `RunSpec`; `train(spec, folder)` executes it and leaves one `record.json` in the folder. This
module imports nothing heavy, so that commands can list and check tasks in no time.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from hf_optim import schedules
from hf_optim.errors import UserError
from hf_optim.importing import import_path

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

T = TypeVar("T")
SIZES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Value(Generic[T]):
    """One value of a preset and where it stands: `paper` (printed there), `code` (in the paper's public code)
    or `ours`.
    """

    value: T
    source: Literal["paper", "code", "ours"] = "ours"
    note: str = ""


@dataclass(frozen=True)
class Preset:
    """The budget and the conventions of one model at one size; every value says where it comes from.

    `batch_size` counts the samples of one optimizer step over all processes and accumulation. `validation` is the
    number of samples held out of a data set that comes without a validation split. `drop_last` leaves out an epoch's
    last, smaller batch (another one every epoch), which makes one process and several take the same steps.
    """

    epochs: Value[int]
    batch_size: Value[int]
    optimizer: Value[dict[str, Any]]
    data: Value[str]
    model: Value[dict[str, Any]] = field(default_factory=lambda: Value({}))
    schedule: Value[dict[str, Any]] = field(default_factory=lambda: Value({"name": "constant"}))
    max_grad_norm: Value[float] = field(default_factory=lambda: Value(0.0, "ours", "no clipping"))
    validation: Value[int] = field(default_factory=lambda: Value(0))
    drop_last: Value[bool] = field(default_factory=lambda: Value(True))
    samples: Value[int | None] = field(default_factory=lambda: Value(None))

    def sources(self) -> dict[str, Value[Any]]:
        """Every value by its name, for tables and documents."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Size:
    """One size of a task: what it is for, and the preset of each model."""

    about: str
    presets: Mapping[str, Preset]


@dataclass(frozen=True)
class Primary:
    """The metric of the record that decides, e.g. `Primary("test_accuracy", True)`."""

    name: str
    greater_is_better: bool

    @property
    def stem(self) -> str:
        """The metric without its split: `accuracy` of `test_accuracy`."""
        return self.name.removeprefix("test_")


@dataclass(frozen=True)
class Data:
    """The three splits as torch datasets, what they are, and the facts that a model is built from (as classes)."""

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    name: str
    fingerprint: str
    note: str
    facts: Mapping[str, Any]


class Task(ABC):
    """A task. Subclass it in `tasks/NAME.py` and put one instance there under the name `TASK`."""

    name: str
    title: str
    primary: Primary
    models: tuple[str, ...]
    sizes: Mapping[str, Size]
    embedded: Mapping[str, str] = {}
    """Data sets that come with the package: name -> one line about it."""

    def preset(self, model: str, size: str) -> Preset:
        """The preset of `model` at `size`; a `UserError` names the valid ones."""
        if not isinstance(size, str) or size not in self.sizes:
            raise UserError(f"task {self.name!r} has no size {size!r}: choose from {', '.join(self.sizes)}")
        if model not in self.models:
            raise UserError(f"task {self.name!r} has no model {model!r}: choose from {', '.join(self.models)}")
        return self.sizes[size].presets[model]

    @abstractmethod
    def data(self, preset: Preset, source: str | None) -> Data:
        """The data of `preset`, or the embedded set or the files that `source` names."""

    @abstractmethod
    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """A freshly initialised model. Its weights depend on torch's random state and nothing else."""

    @abstractmethod
    def model_class(self, name: str) -> type[PreTrainedModel]:
        """The class whose `from_pretrained` reads a checkpoint of `name`."""

    @abstractmethod
    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The metrics of one split from all its gathered predictions; `loss` and the primary's stem among them."""

    def collate(self) -> Callable[[Any], dict[str, Any]] | None:
        """The function that makes a batch; None if the dataset's `__getitems__` already gives one."""
        return None


OVERRIDES: dict[str, type] = {
    "steps": int,
    "epochs": int,
    "batch_size": int,
    "eval_every": int,
    "max_grad_norm": float,
    "gradient_accumulation_steps": int,
}


@dataclass(frozen=True)
class RunSpec:
    """One run: everything that decides its result.

    Args:
        task: a task's name (`"vision"`) or `"file.py:NAME"`.
        model: one of the task's models; None takes the first.
        size: `"smoke"` (seconds), `"small"` (embedded data) or `"paper"`.
        optimizer: `{"name": "smaran", "gamma": 0.9}`, nested for wrappers; a bare name is taken too.
        seed: of the initial weights and of the order of batches; the same for every optimizer of a comparison.
        data: an embedded data set's name or a path to your own files; None takes the preset's.
        schedule: see `hf_optim.schedules`; None takes the preset's.
        overrides: of the preset: steps or epochs, batch_size (samples a step, over all processes), eval_every (steps;
        default
            once an epoch), max_grad_norm (0: no clipping), gradient_accumulation_steps.

    Raises:
        UserError: a value of the wrong type, an unknown override or schedule. Names are looked up by `check()`.
    """

    task: str
    model: str | None = None
    size: str = "small"
    optimizer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    data: str | None = None
    schedule: dict[str, Any] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str):
            object.__setattr__(self, "optimizer", {"name": self.optimizer})
        if not isinstance(self.optimizer, dict) or not isinstance(self.optimizer.get("name"), str):
            raise UserError(
                f"optimizer: expected a mapping with a name, as {{name: adamw, lr: 0.001}}, got {self.optimizer!r}"
            )
        if not isinstance(self.task, str) or not self.task:
            raise UserError(f"task: expected a task's name, got {self.task!r}")
        if self.size not in SIZES:
            raise UserError(f"size: expected one of {', '.join(SIZES)}, got {self.size!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise UserError(f"seed: expected an integer from 0 to 2**32-1, got {self.seed!r}")
        for name in ("model", "data"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UserError(f"{name}: expected a text, got {value!r}")
        if isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", {"name": self.schedule})
        if self.schedule is not None:
            schedules.check(self.schedule)
        self._check_overrides()

    def _check_overrides(self) -> None:
        if not isinstance(self.overrides, dict):
            raise UserError(f"overrides: expected a mapping, got {self.overrides!r}")
        for key, value in self.overrides.items():
            if key not in OVERRIDES:
                raise UserError(f"overrides: unknown key {key!r}; valid: {', '.join(OVERRIDES)}")
            if isinstance(value, bool) or not isinstance(value, (int, float) if OVERRIDES[key] is float else int):
                raise UserError(f"overrides: {key} must be a number ({OVERRIDES[key].__name__}), got {value!r}")
            if not (value >= 0 if key == "max_grad_norm" else value >= 1):
                raise UserError(
                    f"overrides: {key} must be {'0 or more' if key == 'max_grad_norm' else '1 or more'}, got {value!r}"
                )
        if "steps" in self.overrides and "epochs" in self.overrides:
            raise UserError("overrides: steps and epochs both bound the run; give one of them")

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary; `RunSpec.from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSpec:
        """The spec of a dictionary; an unknown or missing key raises a `UserError` that names the valid ones."""
        valid = [f.name for f in fields(cls)]
        unknown = [key for key in values if key not in valid]
        if unknown:
            raise UserError(f"run: unknown key {unknown[0]!r}; valid: {', '.join(valid)}")
        for key in ("task", "optimizer"):
            if key not in values:
                raise UserError(f"run: missing key {key!r}")
        return cls(**values)

    @property
    def id(self) -> str:
        """12 hexadecimal characters of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def check(self) -> tuple[Task, str, Preset]:
        """Look every name up, without importing torch; gives the task, the model's name and the preset."""
        from hf_optim import registry

        task = load(self.task)
        model = self.model or task.models[0]
        preset = task.preset(model, self.size)
        registry.check(self.optimizer)
        return task, model, preset


def names() -> list[str]:
    """The tasks that come with the package, sorted."""
    spec = importlib.util.find_spec("tasks")
    found = set()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob("*.py"):
            if re.search(r"^TASK\b", file.read_text(encoding="utf-8"), re.MULTILINE):
                found.add(file.stem)
    return sorted(found)


def load(name: str) -> Task:
    """The task `name` of `tasks/NAME.py`, or `file.py:NAME` for a task of your own.

    Raises:
        UserError: there is no such task, file or name, or it is not a `Task`.
    """
    if not isinstance(name, str):
        raise UserError(f"task: expected a task's name, got {name!r}")
    if ".py" in name:
        task = import_path(f"{name}:TASK" if name.endswith(".py") else name)
    else:
        if name not in names():
            raise UserError(f"unknown task {name!r}: choose from {', '.join(names())}, or give file.py:NAME")
        task = importlib.import_module(f"tasks.{name}").TASK
    if not isinstance(task, Task):
        raise UserError(f"task {name!r} is not an instance of hf_optim.task.Task")
    return task


def describe(name: str) -> dict[str, Any]:
    """What a listing shows of a task: name, title, primary metric, models, presets with their sources, data."""
    task = load(name)
    sizes = {
        size: {
            "about": entry.about,
            "presets": {
                model: {
                    key: {"value": v.value, "source": v.source, "note": v.note} for key, v in preset.sources().items()
                }
                for model, preset in entry.presets.items()
            },
        }
        for size, entry in task.sizes.items()
    }
    return {
        "name": task.name,
        "title": task.title,
        "primary": asdict(task.primary),
        "models": list(task.models),
        "sizes": sizes,
        "data": dict(task.embedded),
    }


def train(
    spec: RunSpec,
    folder: str | Path,
    *,
    progress: bool = True,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run `spec` and leave `history.jsonl` and, last of all, `record.json` in `folder`; gives the record.

    A run that crashes or diverges (a loss that is not finite) is a record with status "failed" and its reason in one
    line. An interrupted run leaves no record: call it again. Under `torchrun` every process calls it with the same
    arguments and the first one writes.

    Args:
        spec: the run.
        folder: made if missing; an older record in it is removed first.
        progress: one line on stderr an evaluation.
        checkpoint_every: write a checkpoint every so many steps and at the end (`folder/checkpoint-STEP`).
        resume: go on from the folder's last whole checkpoint, bit-identically; without one, start again.

    Raises:
        UserError: what can be known to be wrong before anything is written: names, values, data files.
    """
    from hf_optim import training

    return training.run(spec, Path(folder), progress=progress, checkpoint_every=checkpoint_every, resume=resume)
