"""What a task is, and one run of it.

A task is one object in one file, `tasks/NAME.py`, attribute `TASK`: its data, models, metrics and three sizes of
budget. A run is a `RunSpec`; `training.train(spec, folder)` executes it and leaves one `record.json` in the folder.
This module imports nothing heavy, so that commands can list and check tasks in no time.
"""

from __future__ import annotations

import glob
import importlib
import importlib.util
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from hf_optim import registry
from hf_optim.core.importing import import_path
from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel, TrainerCallback

T = TypeVar("T")
#: where a value stands, see `Value`
Source = Literal["paper", "code", "ours"]
#: what an option may count
MOST_OF_ANYTHING = 2**53
#: in `Value.parts`: the entries that are not named there
REST = "*"


@dataclass(frozen=True)
class Value(Generic[T]):
    """One value of a preset and where it stands: `paper` (printed there), `code` (in the paper's public code)
    or `ours`. Of a mapping `source` is that of its least certain entry, and `parts` has that of each entry that is
    told by itself; under `REST`, that of all others.
    """

    value: T
    source: Source = "ours"
    note: str = ""
    parts: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """The budget and the conventions of one model at one size; every value says where it comes from.

    `batch_size` counts the samples of one optimizer step over all processes and accumulation. `validation` is the
    number of samples held out of a data set that comes without a validation split. `drop_last` leaves out an epoch's
    last, smaller batch (another one every epoch), which makes one process and several take the same steps. `steps`
    bounds the run in place of `epochs`; `evaluations` spreads so many over the run (None: one an epoch); at the end
    only the first `train_evaluation` samples of the train split are evaluated (None: all of them). `precision` is one
    of `hf_optim.experiment.spec.PRECISIONS`.
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
    steps: Value[int | None] = field(default_factory=lambda: Value(None))
    evaluations: Value[int | None] = field(default_factory=lambda: Value(None))
    train_evaluation: Value[int | None] = field(default_factory=lambda: Value(None))
    evaluation_batch: Value[int] = field(default_factory=lambda: Value(256))
    precision: Value[str] = field(default_factory=lambda: Value("fp32", "ours", "no paper says in which it trained"))

    def sources(self) -> dict[str, Value[Any]]:
        """Every value by its name, for tables and documents."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Size:
    """One size of a task: what it is for, and the preset of each model."""

    about: str
    presets: Mapping[str, Preset]


@dataclass(frozen=True)
class Metric:
    """A figure of a split, by its name without the split: `Metric("accuracy", True, "share")`.

    `unit` is "share" (0 to 1), "points" (0 to 100), "nats", "bits", or "" for a plain number.
    """

    name: str
    greater_is_better: bool
    unit: Literal["share", "points", "nats", "bits", ""] = ""


#: what every run records beside its task's metrics
EVERY_RUN = (
    Metric("loss", False, "nats"),
    Metric("loss_gap", False, "nats"),
    Metric("accuracy_gap", False, "share"),
    Metric("sharpness", False),
    Metric("parameter_norm", False),
)
_SPLITS = ("best_validation_", "train_part_", "validation_", "train_", "test_")


def stem_of(name: str) -> str:
    """A figure's name without its split: `accuracy` of `test_accuracy`, `accuracy` of `best_validation_accuracy`."""
    return next((name.removeprefix(split) for split in _SPLITS if name.startswith(split)), name)


@dataclass(frozen=True)
class Primary:
    """The metric of the record that decides, e.g. `Primary("test_accuracy", True)`."""

    name: str
    greater_is_better: bool

    @property
    def stem(self) -> str:
        """The metric without its split: `accuracy` of `test_accuracy`."""
        return stem_of(self.name)


@dataclass(frozen=True)
class Moment:
    """Where a run stands when `Task.sample` is called: the split it samples for, the optimizer steps made, whether this
    is the run's end, the folder for files (None: write none), and this process among how many.
    """

    split: Literal["validation", "test"]
    step: int
    final: bool
    folder: Path | None
    rank: int
    processes: int


@dataclass(frozen=True)
class Data:
    """The three splits as torch datasets, what they are, and the facts that a model is built from (as classes).

    `train_evaluated` is the train split as evaluations see it, where that differs (no augmentation, fixed masks).
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    name: str
    fingerprint: str
    note: str
    facts: Mapping[str, Any]
    train_evaluated: Dataset[Any] | None = None


@dataclass(frozen=True)
class Rung:
    """The size of a model, for a ladder: its parameters, the tokens that a sample trains on, the FLOPs of training on
    one token, and in words how those are counted.
    """

    parameters: int
    tokens: int
    flops: float
    counted: str


class Task(ABC):
    """A task. Subclass it in `tasks/NAME.py` and put one instance there under the name `TASK`."""

    name: str
    title: str
    primary: Primary
    metrics: tuple[Metric, ...] = ()
    """What `measure` and `sample` give, beside the loss; the primary's stem among them unless it is the loss."""
    models: tuple[str, ...]
    sizes: Mapping[str, Size]
    embedded: Mapping[str, str] = {}
    """Data sets that come with the package: name -> one line about it."""
    remote: Mapping[str, str] = {}
    """Data sets of the Hub that the task knows by name: name -> one line about it."""
    options: Mapping[str, str] = {}
    """What `RunSpec.options` takes beside the values of the preset's `model`: name -> one line about it."""
    label_names: tuple[str, ...] = ("labels",)
    """The keys of a batch that are labels."""
    unforeseen: str = "the task has no synthetic data"
    """Why nobody can say before a run what it costs, where that is so."""

    def metric(self, name: str) -> Metric | None:
        """What is declared of a figure of the record or the history, with its split or without; None: nothing is."""
        own = Metric(self.primary.stem, self.primary.greater_is_better)
        return next((m for m in (*self.metrics, own, *EVERY_RUN) if m.name == stem_of(name)), None)

    def model_named(self, model: str | None) -> str:
        """What a run trains that names `model`: the task's first where it names none."""
        return self.models[0] if model is None else model

    def preset(self, model: str, size: str) -> Preset:
        """The preset of `model` at `size`; a `UserError` names the valid ones."""
        if not isinstance(size, str) or size not in self.sizes:
            near = closest(str(size), self.sizes)
            raise UserError(f"task {self.name!r} has no size {size!r}{near}: choose from {', '.join(self.sizes)}")
        if model not in self.models:
            near = closest(str(model), self.models)
            raise UserError(f"task {self.name!r} has no model {model!r}{near}: choose from {', '.join(self.models)}")
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

    def synthetic(self, model: str, preset: Preset) -> Data | None:
        """Random data of the form that `model` trains on under `preset`, made without a file or a network; None: the
        task has none. `facts["train_samples"]` is the size of the real train split.
        """
        return None

    def collate(self, data: Data) -> Callable[[Any], dict[str, Any]] | None:
        """The function that makes a batch of `data`; None takes transformers' default."""
        return None

    def reduce(self, logits: Any, labels: Any) -> Any:
        """What is kept of a batch's output for `measure`: [batch, ...], per sample, before anything is gathered.

        Sums over a sample (of losses, of tokens) rather than means make the gathered figures exact for every batch
        size and number of processes. `logits` and `labels` are tensors, or tuples where there are several.
        """
        return logits

    def sample(self, model: PreTrainedModel, data: Data, moment: Moment) -> dict[str, float]:
        """Metrics that need generation, and files of what was generated, below `moment.folder` on rank 0.

        Called on every process in evaluation mode; gives the same figures on each, whatever their number. The random
        state is put back afterwards.
        """
        return {}

    def callbacks(self, model: PreTrainedModel, preset: Preset, steps: int) -> Sequence[TrainerCallback]:
        """Callbacks of the run, such as an average of the weights."""
        return ()

    def suits(self, model: PreTrainedModel, data: Data) -> None:  # noqa: B027 - nothing to object to by default
        """Raise a `UserError` if a checkpoint's `model` was not made for `data`."""

    def rung(self, model: str, preset: Preset) -> Rung:
        """How large `model` is with the options of `preset`, worked out without making it; for a study's ladder.

        Raises:
            UserError: the task has no such count.
        """
        raise UserError(f"task {self.name!r} has no ladder: it cannot tell a model's parameters and tokens beforehand")

    def check_entry(self, entry: Mapping[str, Any]) -> None:  # noqa: B027 - most tasks heed everything
        """Raise a `UserError` that begins with the key of what a study gives and this task cannot heed."""

    def with_options(self, model: str, preset: Preset, options: Mapping[str, Any]) -> Preset:
        """The preset with `options` in place of its model values; an unknown one is a `UserError`."""
        here, valid = f"task {self.name!r}, model {model!r}:", [*preset.model.value, *self.options]
        for key, value in options.items():
            if key not in valid:
                listed, near = ", ".join(valid) or "none", closest(str(key), valid)
                raise UserError(f"{here} unknown option {key!r}{near}; valid: {listed}")
            if value == "":  # as a path it would be the current folder
                raise UserError(f"{here} option {key!r} is empty")
            if isinstance(value, int) and abs(value) > MOST_OF_ANYTHING:
                raise UserError(f"{here} option {key!r} is beyond what anything counts to")
        merged = {**preset.model.value, **options}
        return replace(preset, model=replace(preset.model, value=merged)) if options else preset


def names() -> list[str]:
    """The tasks that come with the package, sorted."""
    spec = importlib.util.find_spec("hf_optim.tasks")
    stems = set()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob("*.py"):
            if re.search(r"^TASK\b", file.read_text(encoding="utf-8"), re.MULTILINE):
                stems.add(file.stem)
    return sorted(stems)


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
            near = closest(name, names())
            raise UserError(f"unknown task {name!r}{near}: choose from {', '.join(names())}, or give file.py:NAME")
        task = importlib.import_module(f"hf_optim.tasks.{name}").TASK
    if not isinstance(task, Task):
        raise UserError(
            f"task {name!r} is not an instance of hf_optim.experiment.task.Task; a function that trains becomes one "
            "by @hf_optim.study.training(metric=..., greater_is_better=...)"
        )
    return task


def describe(name: str) -> dict[str, Any]:
    """What a listing shows of a task: name, title, primary metric, models, presets with their sources, data."""
    task = load(name)
    sizes = {
        size: {
            "about": entry.about,
            "presets": {
                model: {
                    key: {"value": v.value, "source": v.source, "note": v.note, "parts": dict(v.parts)}
                    for key, v in preset.sources().items()
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
        "metrics": [asdict(metric) for metric in task.metrics],
        "models": list(task.models),
        "sizes": sizes,
        "data": dict(task.embedded),
    }


def check_run(spec: RunSpec) -> tuple[Task, str, Preset]:
    """Look every name of a run up, without importing torch; gives the task, the model's name and the preset.

    Raises:
        UserError: an unknown task, model, option or optimizer.
    """
    task = load(spec.task)
    model = task.model_named(spec.model)
    if spec.data == "":
        raise UserError("data: expected a name or a path, got ''")
    preset = task.with_options(model, task.preset(model, spec.size), spec.options)
    registry.check_spec(spec.optimizer)
    return task, model, preset


def read_data(task: Task, preset: Preset, source: str | None) -> Data:
    """`task.data`; where that fails for a name that is no path, the error has the task's set that is nearest to it."""
    try:
        return task.data(preset, source)
    except UserError as error:
        near = closest(source, (*task.embedded, *task.remote)) if source and not os.path.lexists(source) else ""
        if not near:
            raise
        raise UserError(f"{error}{near}") from None


def names_data(task: str, name: str) -> bool:
    """Whether a task has a data set of its own under this name: it is then meant, whatever the current folder holds
    (`./NAME` is what lies there).
    """
    try:
        known = load(task)
    except UserError:
        return False
    return name in known.embedded or name in known.remote


def paths_in(spec: Mapping[str, Any]) -> list[str]:
    """What of a run's data and options is a path rather than a name, or a name that the current folder has, too."""
    data, options = spec.get("data"), (spec.get("options") or {}).values()
    named = [value for value in options if isinstance(value, str)]
    if isinstance(data, str) and not names_data(spec["task"], data):
        named = [data, *glob.glob(f"{glob.escape(data)}.*"), *named]  # a translation's are NAME.de and NAME.en
    return [name for name in named if os.sep in name or name.startswith((".", "~")) or os.path.lexists(name)]
