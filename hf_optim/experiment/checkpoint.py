"""Checkpoints of runs: the last whole one, the model in it, and the solution that it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_optim.curvature.solution import Solution, gather
from hf_optim.errors import UserError
from hf_optim.experiment import record
from hf_optim.experiment.evaluator import quiet, train_part
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import Task, check_spec, load


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written whole: Trainer writes its state file last."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append((int(path.name.rpartition("-")[2]), str(path)))
        except (OSError, ValueError):
            continue
    return max(whole)[1] if whole else None


def check_checkpoint(checkpoint: Path) -> None:
    """Raise a `UserError` unless `checkpoint` is the folder of a saved model."""
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"checkpoint: {checkpoint} holds no config.json: give a folder such as RUN/checkpoint-432")


def read_model(task: Task, name: str, checkpoint: Path) -> PreTrainedModel:
    """The model of a checkpoint; a `UserError` if it is of another class than the task's model `name`.

    A class that picks the model's own by its configuration (transformers' `Auto...`) takes any.
    """
    cls: Any = task.model_class(name)
    stored = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("architectures")
    if stored and cls.__name__ not in stored and not cls.__name__.startswith("Auto"):
        raise UserError(f"checkpoint: {checkpoint} holds {stored[0]}, but model {name!r} is {cls.__name__}")
    return cast(PreTrainedModel, cls.from_pretrained(checkpoint))


def specification(checkpoint: Path, given: RunSpec | None) -> RunSpec:
    """The run that a checkpoint belongs to: the one that `spec.json` beside it names, or `given`."""
    check_checkpoint(checkpoint)
    file = checkpoint.parent / record.SPEC
    if given is not None:
        return given
    try:
        return RunSpec.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"checkpoint: there is no {file}, so say which run it was: --task, --model, --size") from error
    except ValueError as error:
        raise UserError(f"checkpoint: {file} does not name a run: {error}") from error


def read_solution(
    checkpoint: Path, spec: RunSpec, split: str, samples: int | None, *, double: bool = False
) -> Solution:
    """The model of a checkpoint with the first `samples` of a split of its task's data.

    Raises:
        UserError: a checkpoint of another model, or of other data.
    """
    task, name, preset = check_spec(spec)
    data = load(spec.task).data(preset, spec.data)
    with quiet():
        model: Any = read_model(task, name, checkpoint)
    task.suits(model, data)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if double:
        model.double()
    dataset: Any = {"train": train_part(data, None), "validation": data.validation, "test": data.test}[split]
    solution = gather(model, dataset, task.collate(data), samples)
    if double:
        solution.batches = [({k: _double(v) for k, v in batch.items()}, n) for batch, n in solution.batches]
    return solution


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
