"""Trackers beside a run's own record: which there are, and how the runs of a study stand together in them.

Nothing here is part of a run's specification: a tracked run has the id and the numbers of one that is not.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_optim.core import importing
from hf_optim.core.safe_text import line
from hf_optim.core.validate import closest
from hf_optim.errors import UserError, one_line
from hf_optim.experiment.disk import writing
from hf_optim.experiment.files import own_folder

#: what trackers write where they are not given a server, below the study's folder
FOLDER = "trackers"
#: what trackers are told where the environment says nothing: W&B to send nothing, MLflow nothing to its makers, ClearML
#: no checkpoints, and W&B and Comet to leave git alone, which starts the programs that a `.git/config` of the current
#: folder names (core.fsmonitor, a filter)
_TOLD = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_DISABLE_GIT": "true"},
    "comet_ml": {"COMET_AUTO_LOG_GIT_METADATA": "false", "COMET_AUTO_LOG_GIT_PATCH": "false"},
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true"},
    "clearml": {"CLEARML_LOG_MODEL": "false"},
}
#: what says where a study's runs stand, where the environment does not
_GROUPED = {
    "mlflow": "MLFLOW_EXPERIMENT_NAME",
    "clearml": "CLEARML_PROJECT",
    "comet_ml": "COMET_PROJECT_NAME",
    "swanlab": "SWANLAB_PROJECT",
}
#: settings that trackers take from the current folder: where to send what, a key, a file to write a log over. (Comet
#: measures with CodeCarbon where that is installed.)
_SETTINGS = {"comet_ml": (".comet.config", ".env", ".codecarbon.config"), "codecarbon": (".codecarbon.config",)}
#: what trackers write below a run's own folder
_WRITTEN = {"tensorboard": "runs", "codecarbon": "emissions.csv"}


def names(text: str | None) -> tuple[str, ...]:
    """The trackers of "tensorboard,wandb"."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def check(report_to: Sequence[str]) -> None:
    """Raise UserError for a tracker that transformers does not know or that is not installed, or for settings of the
    current folder, which one of them heeds as it is imported.
    """
    if not report_to:
        return
    allow(report_to)
    check_names(report_to)
    from transformers.integrations import integration_utils

    for name in report_to:
        if name not in integration_utils.get_available_reporting_integrations():
            raise UserError(f"report_to: {name} is not installed: pip install {name}")


def check_names(report_to: Sequence[str]) -> None:
    """Raise UserError for a tracker that transformers does not know."""
    if not report_to:
        return
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as KNOWN

    for name in report_to:
        if name not in KNOWN:
            near, known = closest(name, KNOWN), ", ".join(sorted(KNOWN))
            raise UserError(f"report_to: {name!r} is no tracker{near}; known: {known}")


def check_settings(report_to: Sequence[str], folder: Path) -> None:
    """Raise UserError if a tracker would take from the current folder which server it sends a key to, or W&B from the
    one that it writes to, `folder`, or if it would write there where a link leads, over what is called as its log is.
    (W&B 0.31 looks into the current one, whatever WANDB_DIR says.)
    """
    _check_current(report_to)
    for place in (folder / "wandb", folder / ".wandb") if "wandb" in report_to else ():
        _check_wandb(place)
        if place.is_symlink():
            raise UserError(
                f"report_to: W&B would write where {place} leads, which is a link: take it away, or say in WANDB_DIR "
                "where to write"
            )


def allow(report_to: Sequence[str]) -> None:
    """Lets these trackers be imported; a UserError where one would heed settings of the current folder."""
    _check_current(report_to)
    importing.ask_for(report_to)


def _check_current(report_to: Sequence[str]) -> None:
    for name in ("wandb", ".wandb") if "wandb" in report_to else ():
        _check_wandb(Path(name))
    for name, files in _SETTINGS.items():
        for file in files if name in report_to else ():
            if os.path.lexists(file):
                raise UserError(
                    f"report_to: {name} heeds {file} of the current folder, which may send your key elsewhere: keep it "
                    "in your home folder, or start elsewhere"
                )


def _check_wandb(place: Path) -> None:
    if os.path.lexists(settings := place / "settings"):
        raise UserError(f"report_to: W&B heeds {settings}, which may send your key elsewhere: take it away")


def check_folder(report_to: Sequence[str], folder: Path) -> None:
    """Raise UserError if what a tracker writes below a run's `folder` would go where a link there leads."""
    for name in report_to:
        if name in _WRITTEN and (link := folder / _WRITTEN[name]).is_symlink():
            raise UserError(f"report_to: {name} would write where {link} leads, which is a link: take it away")


@dataclass(frozen=True)
class Tracked:
    """One run of a study as trackers see it.

    Args:
        report_to: the trackers' names.
        folder: the study's.
        group: the study's name: W&B's group, trackio's project.
        task, optimizer, seed, id: the run.
    """

    report_to: Sequence[str]
    folder: str
    group: str
    task: str
    optimizer: str
    seed: int
    id: str

    @property
    def name(self) -> str:
        """The run's name; trials of an optimizer share its seed, so its id belongs to it."""
        return f"{self.optimizer}/{self.seed}/{self.id}"

    def options(self) -> dict[str, Any]:
        """What `training.train` is given."""
        return {"report_to": tuple(self.report_to), "run_name": self.name, "project": self.group}

    def environment(self) -> dict[str, str]:
        """What trackers read from the environment. W&B works offline unless WANDB_MODE says otherwise."""
        told = _defaults(self.report_to)
        told |= {key: os.environ.get(key, self.group) for name, key in _GROUPED.items() if name in self.report_to}
        if "clearml" in self.report_to:
            told["CLEARML_TASK"] = self.name
        if "tensorboard" in self.report_to:
            # Labels may be a stranger's: as folders they keep what is harmless.
            parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", part) for part in (self.task, self.optimizer)]
            place = own_folder(Path(self.folder), FOLDER, "tensorboard", *parts, f"{self.seed}-{self.id}")
            told["TENSORBOARD_LOGGING_DIR"] = str(place)
        if "wandb" in self.report_to:
            # W&B writes into one of these; a link there, as a stranger's folder may hold one, would lead it elsewhere.
            hidden = [".wandb"] if os.path.lexists(Path(self.folder, FOLDER, ".wandb")) else []
            for name in ("wandb", *hidden):
                own_folder(Path(self.folder), FOLDER, name)
            told |= {
                "WANDB_PROJECT": os.environ.get("WANDB_PROJECT", "hf_optim"),
                "WANDB_DIR": str(Path(self.folder, FOLDER)),
                "WANDB_RUN_GROUP": self.group,
                "WANDB_JOB_TYPE": self.task,
                "WANDB_NAME": self.name,
            }
        return told


def _defaults(report_to: Sequence[str]) -> dict[str, str]:
    told = {key: value for name in report_to for key, value in _TOLD.get(name, {}).items()}
    return {key: os.environ.get(key, value) for key, value in told.items()}


@contextmanager
def alone(report_to: Sequence[str]) -> Iterator[None]:
    """Within the block, of a run that stands in no study, trackers work as in one: W&B offline, without git."""
    allow(report_to)
    with _told(_defaults(report_to)):
        yield


@contextmanager
def _told(told: Mapping[str, str]) -> Iterator[None]:
    """Within the block the environment says so."""
    before = {key: os.environ.get(key) for key in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def failed(name: str, error: BaseException) -> None:
    """Says that a tracker failed, which is no matter of the run."""
    text = f"warning: report_to: {name} failed and is fed no more, and the run goes on ({one_line(error)})"
    print(line(text), file=sys.stderr, flush=True)


def _end(report_to: Sequence[str]) -> None:
    """Trainer leaves a run of these open, after a failure or even after it has ended it, and the next run of the
    process would go on in it.
    """
    for name in report_to:
        module = sys.modules.get(name)  # a run that never came to its tracker has not imported it
        try:
            if module is not None and name in _ENDS:
                _ENDS[name](module)
        except Exception as error:
            failed(name, error)


def _finish(module: Any) -> None:
    with suppress(RuntimeError):  # there is none
        module.finish()


def _end_clearml(clearml: Any) -> None:
    if (task := clearml.Task.current_task()) is not None:
        task.close()


#: tracker -> what ends the run that it has open, given its module
_ENDS: dict[str, Callable[[Any], object]] = {
    "wandb": lambda wandb: wandb.finish(),
    "trackio": _finish,
    "mlflow": lambda mlflow: mlflow.end_run("FAILED"),  # Trainer has ended those that did not
    "clearml": _end_clearml,
    "comet_ml": lambda comet: comet.end(),
    "swanlab": _finish,
}


@contextmanager
def following(tracked: Tracked | None) -> Iterator[dict[str, Any]]:
    """Within the block trackers know the run; gives what `training.train` is given. None: nothing is tracked."""
    if tracked is None:
        yield {}
        return
    allow(tracked.report_to)
    with writing(Path(tracked.folder)):
        told = tracked.environment()
    with _told(told):
        try:
            yield tracked.options()
        finally:
            _end(tracked.report_to)
