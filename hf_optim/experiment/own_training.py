"""A training of one's own in a study: a function that trains and measures, without a Task to write.

from hf_optim import study

@study.training(metric="test_accuracy", greater_is_better=True)
def train(optimizer, seed, log):
    ...
    return {"test_accuracy": 0.93, "validation_accuracy": 0.94}
"""

from __future__ import annotations

import inspect
import math
import random
import reprlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_optim.core import importing
from hf_optim.errors import UserError, one_line
from hf_optim.experiment import record as records
from hf_optim.experiment.disk import check_error, check_space, writing
from hf_optim.experiment.files import remove
from hf_optim.experiment.spec import SIZES, RunSpec
from hf_optim.experiment.task import MOST_OF_ANYTHING, Data, Metric, Preset, Primary, Size, Task, Value, check_run

#: arguments that a function may ask for by name; every other one is an option of the study's YAML
GIVEN = ("optimizer", "seed", "log", "folder")
MODEL = "own"
#: the `fault` in the record of a run whose function did not return what it promises
FUNCTION = "function"


def training(
    *, metric: str, greater_is_better: bool, unit: str = "", title: str = ""
) -> Callable[[Callable[..., Any]], OwnTraining]:
    """Makes a function a task that a study names as `file.py:FUNCTION`.

    The function is called once a run, in a process of its own, with what it asks for by name: `optimizer`, the
    specification (`{"name": "smaran", "lr": 0.1}`), which `hf_optim.create(spec, model)` and `hf_optim.attach(trainer,
    spec)` take; `seed`, with which all generators have been seeded already; `log(step, train_loss=..., ...)`, which
    writes a row of the history; `folder`, the run's own. Other arguments are the study's `options`. A row of step 0
    with the validation figure, `log(0, validation_accuracy=0.1)`, says where training begins: a run that ends no better
    counts as failed. Without it nobody knows, and the report says so.

    It returns a mapping of figures with `metric` among them, or such a mapping and a Trainer's `state.log_history`.

    Args:
        metric: what decides, such as "test_accuracy"; tuning chooses by "validation_accuracy".
        greater_is_better: its direction.
        unit: "share" (0 to 1), "points", "nats", "bits" or "".
        title: a line about it; default the first one of the function's docstring.

    Raises:
        UserError: a metric that is no figure of the test split.
    """
    if not metric.startswith("test_"):
        raise UserError(f"metric: a study judges on the test split: name it test_..., got {metric!r}")

    def decorate(function: Callable[..., Any]) -> OwnTraining:
        return OwnTraining(function, Primary(metric, greater_is_better), unit, title)

    return decorate


class WrongResult(UserError):
    """What the function returned is not what it said that it would, whatever the optimizer did."""


class OwnTraining(Task):
    """The task that `training` makes of a function; calling it calls the function."""

    models = (MODEL,)
    unforeseen = "only its function knows what a run does: `hf-optim train --task` with it times one"

    def __init__(self, function: Callable[..., Any], primary: Primary, unit: str, title: str) -> None:
        parameters = inspect.signature(function).parameters
        for needed in ("optimizer", "seed"):
            if needed not in parameters:
                raise UserError(f"{function.__name__}: a training takes `optimizer` and `seed`, among others")
        self.function, self.primary = function, primary
        self.name = function.__name__
        self.title = title or (inspect.getdoc(function) or self.name).splitlines()[0]
        self.metrics = (Metric(primary.stem, primary.greater_is_better, unit),)  # type: ignore[arg-type]
        self.options = {name: "an argument of the function" for name in parameters if name not in GIVEN}
        preset = Preset(epochs=Value(1), batch_size=Value(1), optimizer=Value({"name": "adamw"}), data=Value("own"))
        self.sizes = {size: Size("as the function says", {MODEL: preset}) for size in SIZES}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def path(self) -> str:
        """`file.py:NAME`, by which a worker process finds the function.

        Raises:
            UserError: it was defined in a notebook or at a prompt, where no other process can see it.
        """
        file = inspect.getsourcefile(self.function)
        if file is None or not Path(file).is_file() or not file.endswith(".py"):
            raise UserError(
                f"{self.name} lives in this notebook, where the processes of a study cannot see it: write its cell to "
                f'a file (%%writefile mine.py) and name "mine.py:{self.name}"'
            )
        return f"{file}:{self.name}"

    def data(self, preset: Preset, source: str | None) -> Data:
        raise self._inside("data")

    def model(self, name: str, preset: Preset, data: Data) -> Any:
        raise self._inside("model")

    def model_class(self, name: str) -> Any:
        raise self._inside("model")

    def measure(self, predictions: Any, references: Any) -> dict[str, float]:
        raise self._inside("metrics")

    def _inside(self, part: str) -> UserError:
        return UserError(f"{self.name} is a training of its own: its {part} are inside the function")

    def run(self, spec: RunSpec, folder: Path) -> dict[str, Any]:
        """One run: calls the function and leaves history and record, as every run does."""
        self._check(spec)
        import torch

        from hf_optim.hub.arguments import Settled, sources

        rows: list[dict[str, Any]] = []
        names: set[str] = set()

        def log(step: int, **values: float) -> None:
            figures = {name: self._logged(name, value) for name, value in values.items()}
            names.update(figures)
            self._check_extent("logged", names, len(rows) + 1)
            rows.append({"step": self._step(step), **figures, "seconds": round(time.perf_counter() - begun, 4)})

        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in (records.RECORD, records.HISTORY):
                remove(folder, name)
        check_space(folder)
        _seed(spec.seed)
        started, begun = datetime.now(UTC), time.perf_counter()
        metrics: dict[str, float] = {}
        error: str | None = None
        fault: dict[str, str] = {}
        given = {"optimizer": spec.optimizer, "seed": spec.seed, "log": log, "folder": folder} | spec.options
        asked = inspect.signature(self.function).parameters
        settled = Settled([], [])
        try:
            with sources() as settled:
                result = self.function(**{name: value for name, value in given.items() if name in asked})
            metrics, logged = self._figures(result)
            rows = rows or logged
        except Exception as problem:
            check_error(folder, problem)
            error, metrics = one_line(problem), {}
            fault = {"fault": FUNCTION} if isinstance(problem, WrongResult) else {}
        seconds = time.perf_counter() - begun
        record: dict[str, Any] = {
            "id": spec.id,
            "spec": spec.to_dict(),
            "status": "ok" if error is None else "failed",
            "error": error,
            **fault,
            "settled": settled.lines,
            "in_force": settled.values,
            "metrics": metrics,
            "primary": {"name": self.primary.name, "greater_is_better": self.primary.greater_is_better},
            "history": records.HISTORY,
            "samples": [],
            "time": {"train_seconds": round(seconds, 3), "steps": max((row["step"] for row in rows), default=0)},
            "memory": {"peak_rss_bytes": records.peak_memory()},
            "environment": records.environment(1, "cuda" if torch.cuda.is_available() else "cpu"),
            "code": importing.digests(spec.to_dict()),
            "data": None,
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        records.leave(folder, rows, record)
        return record

    def check_entry(self, entry: Mapping[str, Any]) -> None:
        """See `Task`: what it heeds are its arguments."""
        for key in ("overrides", "schedule", "schedules", "data"):
            if entry.get(key):
                raise UserError(f"{key}: {self.name} is a training of its own: give it as an argument, under options")

    def _check(self, spec: RunSpec) -> None:
        self.check_entry(spec.to_dict())
        if spec.pruning:
            raise UserError(f"prune: {self.name} is a training of its own, which cannot be stopped early")

    def _figures(self, result: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """What the function returned, checked: figures, and the rows of a Trainer's log where it gave one."""
        logged: Sequence[Mapping[str, Any]] = ()
        if isinstance(result, tuple) and len(result) == 2:
            result, logged = result
        if not isinstance(result, Mapping):
            kind = "nothing" if result is None else type(result).__name__
            raise WrongResult(
                f"{self.name} returned {kind}: it has to return its figures by name, {{{self.primary.name!r}: ...}}"
            )
        metrics = {str(key): self._number(key, value) for key, value in result.items()}
        if self.primary.name not in metrics:
            returned = ", ".join(metrics) or "no figure"
            raise WrongResult(
                f"{self.name} returned {returned}, and no {self.primary.name}, by which it is judged: return that "
                "figure by this name"
            )
        if not math.isfinite(metrics[self.primary.name]):
            raise UserError(f"{self.primary.name} is not finite")
        names = {"loss": "train_loss", "learning_rate": "lr"}
        rows = []
        for entry in logged:
            figures = {names.get(k, k.replace("eval_", "validation_", 1)): v for k, v in entry.items() if _is_figure(v)}
            figures = {name: self._logged(name, value) for name, value in figures.items()}
            rows.append({"step": self._step(entry["step"]), **figures})
        self._check_extent("returned", {*metrics}, 0)
        self._check_extent("returned a log of", {name for row in rows for name in row}, len(rows))
        return {key: value for key, value in metrics.items() if math.isfinite(value)}, rows

    def _check_extent(self, how: str, names: Collection[str], rows: int) -> None:
        """What is beyond this nobody could read."""
        if len(names) > records.MOST_NAMES or rows > records.MOST_ROWS:
            raise WrongResult(
                f"{self.name} {how} more than {records.MOST_NAMES:,} figures by name or {records.MOST_ROWS:,} rows, "
                "which no report reads: leave some out"
            )

    def _logged(self, name: str, value: Any) -> Any:
        """What a history can hold: of a tensor or a number of numpy's its value, which is what was meant."""
        if isinstance(value, (list, tuple)):
            return [self._logged(name, entry) for entry in value]
        held = isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) <= MOST_OF_ANYTHING)
        return value if value is None or held else self._number(name, value, "logged")

    def _step(self, step: Any) -> int:
        """A step that a record can hold."""
        if not abs(number := self._number("step", step, "logged")) <= MOST_OF_ANYTHING:
            raise WrongResult(f"{self.name} logged step = {number:g}, which is beyond what anything counts to")
        return int(step)

    def _number(self, name: Any, value: Any, how: str = "returned") -> float:
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's, of a tensor with several
            rows = isinstance(value, Sequence) and all(isinstance(row, Mapping) for row in value)
            behind = f": a Trainer's log stands behind the figures, return figures, {name}" if rows and value else ""
            raise WrongResult(f"{self.name} {how} {name} = {reprlib.repr(value)}, which is no number{behind}") from None


def run_alone(spec: RunSpec, folder: Path) -> bool:
    """Runs `spec` if its task is a training of one's own, without importing Trainer, which it may have no use for.
    False: it is none, and nothing happened.
    """
    task, _, _ = check_run(spec)
    if not isinstance(task, OwnTraining):
        return False
    task.run(spec, folder)
    return True


def _seed(seed: int) -> None:
    """As `transformers.set_seed` does."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
