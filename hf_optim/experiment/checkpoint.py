"""Checkpoints of runs: the last whole one, the model in it, and the solution that it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from hf_optim.core import importing, shape
from hf_optim.core.shape import Each
from hf_optim.curvature.solution import Solution, gather
from hf_optim.errors import UserError, one_line
from hf_optim.experiment import files, record, saved_files
from hf_optim.experiment.configuration import asks, configuration, entries, read_mapping, whole_numbers
from hf_optim.experiment.disk import check_given
from hf_optim.experiment.evaluator import quiet, train_part
from hf_optim.experiment.record import step_of
from hf_optim.experiment.spec import UNSEEN, RunSpec
from hf_optim.experiment.task import Task, check_run, load, paths_in, read_data
from hf_optim.hub.renamed import read_whole

#: what says that a checkpoint holds adapters, and their weights
ADAPTERS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: what a run that goes on takes from Trainer's state
STATE = {"global_step": int, "log_history": [{"step": float, "epoch?": (float, None)}]}
#: modules of a model; the largest there are have some ten thousand
MOST_PARTS = 100_000
#: names that transformers makes for labels as it reads a configuration, and the keys that count them, timm's too
MOST_LABELS, LABELS = 1_000_000, ("num_labels", "num_classes")
#: how often a pass runs one module; models whose layers share their weights do some dozen times
MOST_TURNS = 1000
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
#: what is written first of a model, or of adapters
FIRST = ("config.json", ADAPTERS, "README.md")
#: seconds that a folder may be younger than what was written into it: a file may come to its place by a new name
SLACK = 60
#: how the files of a model end that are read whole, and bytes of one; the largest tokenizers there are have some 30 MB
READ_WHOLE, LARGEST = (".json", ".txt", ".jinja", ".model", ".tiktoken"), 128 << 20


def last_checkpoint(folder: Path, training: bool = False) -> str | None:
    """The last checkpoint that was written whole, with a state that Trainer wrote: it writes that file last. With
    `training` all that a run goes on from is there, too: Trainer would begin anew with what is missing, unsaid.

    Raises UserError where the disk does not say what stands there: without a checkpoint a run is begun anew.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            if training and not _goes_on(path):
                continue
            state = files.read_json(folder, f"{path.name}/trainer_state.json")
            shape.check_shape(state, STATE, path.name)
            if state["global_step"] == step_of(path.name):
                whole.append((state["global_step"], str(path)))
        except (OSError, ValueError) as error:
            check_given(path, error)
    return max(whole)[1] if whole else None


def _goes_on(checkpoint: Path) -> bool:
    """Whether the optimizer's state (of shards a folder), the schedule's and the random states are there."""
    random = any(map(Path.is_file, checkpoint.glob("rng_state*.pth")))
    shards = any(map(Path.is_dir, checkpoint.glob("optimizer*")))
    optimizer = shards or any((checkpoint / f"optimizer.{kind}").is_file() for kind in ("pt", "bin"))
    return random and (checkpoint / "scheduler.pt").is_file() and optimizer


def _is_begun(checkpoint: Path) -> bool:
    """Whether a folder is called as Trainer calls a checkpoint, and begins as one does: all else is somebody's."""
    if step_of(checkpoint.name) < 0 or checkpoint.is_symlink() or not checkpoint.is_dir():
        return False
    names = {path.name for path in checkpoint.glob("*")}
    return not names or not names.isdisjoint(FIRST)


def is_cut_short(checkpoint: Path) -> bool:
    """Whether this is what a killed run leaves of the checkpoint that it was writing: weights come first, the state
    last. A whole one is none, nor one out of which the rest was taken: that folder is younger than all that is in it.
    """
    if not _is_begun(checkpoint):
        return False
    try:
        files.read_json(checkpoint, "trainer_state.json")
        return False
    except (FileNotFoundError, ValueError):  # there is none, or it was being written
        pass
    except OSError:
        return False
    weighs = any(path for kind in (*WEIGHTS, ADAPTER_WEIGHTS) for path in checkpoint.glob(kind))
    if not weighs or any(checkpoint.glob("optimizer*")):
        return True
    latest = max(path.lstat().st_mtime for path in checkpoint.glob("*"))
    return checkpoint.stat().st_mtime < latest + SLACK


def check_checkpoint(checkpoint: Path, own: PretrainedConfig | None = None) -> None:
    """Raise a `UserError` unless `checkpoint` is the folder of a saved model; one of a run counts as far as the run's
    `own` configuration does, too.
    """
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"checkpoint: {checkpoint} holds no config.json: give a folder such as RUN/checkpoint-432")
    check_files(checkpoint)
    if (generation := checkpoint / "generation_config.json").exists():  # transformers reads it, however much it holds
        read_mapping(generation)
    config = read_mapping(checkpoint / "config.json")
    if asked := asks(config):
        raise UserError(f"checkpoint: {checkpoint}: its config.json asks for code or files of others ({asked})")
    _check_counts(checkpoint, config, own)
    if (checkpoint / ADAPTERS).exists():
        raise UserError(f"checkpoint: {checkpoint} holds an adapter ({ADAPTERS}): merge it into its model")
    try:
        for file in pickled_weights(checkpoint):
            saved_files.check(file)
    except saved_files.Suspect as error:
        raise UserError(f"checkpoint: {checkpoint}: {error}") from None


def _check_counts(checkpoint: Path, config: Any, own: PretrainedConfig | None) -> None:
    """Raise a `UserError` for numbers beyond all files: before there is a layer, tables are made for each, and names
    for each label, of every part.
    """
    ours = own.to_dict() if isinstance(own, PretrainedConfig) else {}
    most = max(_held(checkpoint), 10_000_000, *whole_numbers(ours))
    labels = sum(max((0, *whole_numbers(count))) for key, count in entries(config) if key in LABELS)
    layers = sum(_multiplied(kinds) for key, kinds in entries(config) if key == "attention_types")
    if max(whole_numbers(config), default=0) > most or labels > MOST_LABELS or layers > MOST_TURNS:
        raise UserError(f"checkpoint: {checkpoint}: its config.json counts beyond what its files hold")


def _multiplied(kinds: Any) -> int:
    """How many layers GPT-Neo's [[["global", "local"], 6]] becomes."""
    pairs = [pair for pair in kinds if isinstance(pair, list) and len(pair) > 1] if isinstance(kinds, list) else []
    return sum(
        len(names) * max(0, times) for names, times, *_ in pairs if isinstance(names, Sized) and isinstance(times, int)
    )


def _held(checkpoint: Path) -> int:
    """Bytes of a checkpoint's weights; links hold nothing more."""
    weights = [file.stat() for kind in WEIGHTS for file in checkpoint.glob(kind) if file.is_file()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in weights}.values())


def pickled_weights(checkpoint: Path) -> set[Path]:
    """The files of weights that torch would unpickle: by their names, and whatever an index of shards calls them.

    Raises:
        UserError: an index names a file that is not beside it.
    """
    shards: set[str] = set()
    for index in checkpoint.glob("*.index.json"):
        named = read_mapping(index).get("weight_map")
        if not shape.fits(named, Each(str)) or any(Path(shard).name != shard for shard in named.values()):
            raise UserError(f"checkpoint: {checkpoint}: {index.name} names a file that is not beside it")
        safe = index.name.endswith(".safetensors.index.json")  # Trainer reads as torch does what the other one names
        shards.update(shard for shard in named.values() if not (safe and shard.endswith(".safetensors")))
    return {*checkpoint.glob(WEIGHTS[1]), *(file for shard in shards if (file := checkpoint / shard).exists())}


def check_adapters(checkpoint: Path) -> None:
    """Raise a `UserError` if a folder of adapters has others below it: PEFT would make what their settings name, which
    it seeks on the Hub where there are weights alone.
    """
    check_files(checkpoint)
    if inner := next(checkpoint.glob("*/adapter_*"), None):
        raise UserError(f"checkpoint: {checkpoint} holds further adapters ({inner.parent.name}): take them away")


def check_files(checkpoint: Path) -> None:
    """Raise a `UserError` unless a folder holds plain files and folders, or links as a cache of models holds them:
    snapshots/REVISION/x to blobs/HASH.
    """
    home = Path(os.path.realpath(checkpoint))  # `Path.resolve` fails where a link leads to itself
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    told = {}
    for path in files.below(checkpoint, "checkpoint"):
        led = Path(os.path.realpath(path))
        if path.is_symlink() and not (led.is_relative_to(home) or led.parent == blobs):
            raise UserError(f"checkpoint: {path} is a link that leads elsewhere: put the file itself there")
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise UserError(f"checkpoint: {path} is no plain file")
        if path.suffix in READ_WHOLE and path.is_file() and path.stat().st_size > LARGEST:
            raise UserError(f"checkpoint: {path} has more than {LARGEST >> 20} MB")
        if path.is_file():
            stat = path.stat()
            told[stat.st_dev, stat.st_ino] = size, written = stat.st_size, 512 * stat.st_blocks
            if files.is_hollow(size, written):
                raise UserError(f"checkpoint: {path} says to have {size >> 30} GB and is mostly holes")
    size, written = (sum(part) for part in zip((0, 0), *told.values(), strict=True))
    if files.is_hollow(size, written):  # of many smaller ones
        raise UserError(f"checkpoint: {checkpoint} says to have {size >> 30} GB and is mostly holes")
    # transformers takes it before a whole model
    if shard := next(checkpoint.glob("shard-*-model-*.safetensors"), None):
        raise UserError(f"checkpoint: {checkpoint} holds a process's part of a model ({shard.name}): save it whole")


def read_model(task: Task, name: str, checkpoint: Path) -> PreTrainedModel:
    """The model of a checkpoint; a `UserError` if it is of another class than the task's model `name`.

    A class of transformers that ours derives from will do: it has the same weights. A class that picks the model's own
    by its configuration (transformers' `Auto...`) takes any.
    """
    cls: Any = task.model_class(name)
    stored = read_mapping(checkpoint / "config.json").get("architectures")
    known = {base.__name__ for base in cls.__mro__ if issubclass(base, PreTrainedModel) and base is not PreTrainedModel}
    listed = [entry for entry in stored if isinstance(entry, str)] if isinstance(stored, list) else []
    if listed and known.isdisjoint(listed) and not cls.__name__.startswith("Auto"):
        raise UserError(f"checkpoint: {checkpoint} holds {listed[0]}, but model {name!r} is {cls.__name__}")
    return from_folder(cls, checkpoint, dtype=torch.float32)  # as every run trains it, whatever its config.json says


def from_folder(cls: Any, checkpoint: Path, **how: Any) -> PreTrainedModel:
    """`cls.from_pretrained(checkpoint, **how)`, of a folder that is looked through before: it runs no code of others,
    reads nothing elsewhere, and grows no further than its files. A `UserError` if there is no such model in it.
    """
    check_checkpoint(checkpoint)
    try:
        with quiet(), _bounded(checkpoint):
            own = configuration(cls, checkpoint)
            model = read_whole(cls, checkpoint, config=own, trust_remote_code=False, **how)
            _watch_first_pass(model, checkpoint)
            return model
    except UserError:
        raise
    except Exception as error:  # whatever transformers, safetensors and torch say of files that are damaged
        raise UserError(f"checkpoint: {checkpoint} holds no model that can be read: {one_line(error)}") from error


def _watch_first_pass(model: PreTrainedModel, checkpoint: Path) -> None:
    """Makes the model's first pass a `UserError` where it runs a module without end: of layers that share their weights
    a config.json may count any number, which no file has to hold.
    """
    turns: Counter[int] = Counter()
    handles: list[RemovableHandle] = []

    def count(module: torch.nn.Module, _: object) -> None:
        turns[id(module)] += 1
        if turns[id(module)] > MOST_TURNS:
            raise UserError(
                f"checkpoint: {checkpoint}: its config.json has a layer run more than {MOST_TURNS} times in one pass"
            )

    def begin(*_: object) -> None:
        turns.clear()  # a copy of the model keeps these hooks: each of its passes is a first one
        handles.append(torch.nn.modules.module.register_module_forward_pre_hook(count))

    def end(*_: object) -> None:
        while handles:
            handles.pop().remove()

    handles += [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]


@contextmanager
def judged(checkpoint: Path) -> Iterator[None]:
    """Within it whatever goes wrong as a checkpoint's model is asked for what it is, and computes, is the checkpoint's:
    its config.json may say anything.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"checkpoint: {checkpoint}: its model cannot be judged: {one_line(error)}") from error


def read_adapters(model: PreTrainedModel, checkpoint: Path) -> PreTrainedModel:
    """`model`, as its task makes it, with the adapters of a checkpoint. Nothing but their numbers is taken from it.

    Raises:
        UserError: the model has no adapters, or others.
    """
    check_files(checkpoint)
    file = checkpoint / ADAPTER_WEIGHTS
    if not hasattr(model, "peft_config"):
        raise UserError(f"checkpoint: {checkpoint} holds an adapter ({ADAPTERS}), and the model takes none: merge it")
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    if not file.is_file():  # a pipe would be waited for
        raise UserError(f"checkpoint: {checkpoint} has no {ADAPTER_WEIGHTS}")
    try:
        weights = load_file(file)
    except Exception as error:  # whatever safetensors says of a damaged file
        raise UserError(f"checkpoint: {file} cannot be read: {one_line(error)}") from error
    here = get_peft_model_state_dict(model)
    if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in here.items()}:
        raise UserError(
            f"checkpoint: {checkpoint} holds other adapters than the model: give the --model.KEY values of its training"
        )
    set_peft_model_state_dict(model, weights)
    return model


@contextmanager
def _bounded(checkpoint: Path) -> Iterator[None]:
    """Within it a model of more parts, or numbers, than the files of the checkpoint can hold is a `UserError`, however
    its config.json calls what it counts: it would be built until memory ends.
    """
    held, parts, numbers = _held(checkpoint), 0, 0

    def part(*_: object) -> None:
        nonlocal parts
        parts += 1
        if parts > MOST_PARTS:
            raise UserError(f"checkpoint: {checkpoint}: its config.json asks for more than {MOST_PARTS} layers")

    def tensor(module: object, name: str, value: Tensor | None) -> None:
        nonlocal numbers
        numbers += 0 if value is None else value.numel()
        if numbers > 8 * held + (64 << 20):  # two for a tied one, buffers, 8 bits at the least, and tables of masks
            raise UserError(f"checkpoint: {checkpoint}: its config.json asks for more numbers than its files hold")

    hooks = (
        torch.nn.modules.module.register_module_module_registration_hook(part),
        torch.nn.modules.module.register_module_parameter_registration_hook(tensor),
        torch.nn.modules.module.register_module_buffer_registration_hook(tensor),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def specification(checkpoint: Path, given: RunSpec | None) -> RunSpec:
    """The run that a checkpoint belongs to: the one that `spec.json` beside it names, or `given`."""
    file = checkpoint.parent / record.SPEC
    if given is not None:
        return given
    try:
        stored = files.read_json(checkpoint.parent, record.SPEC)
        shape.check_shape(stored, {}, record.SPEC)
        spec = RunSpec.from_dict(stored)
        # that the run read ahead or compiled is no matter of a checkpoint's, and would start processes here
        started = (*UNSEEN, "compile_model")
        spec = replace(spec, overrides={key: value for key, value in spec.overrides.items() if key not in started})
        if (why := importing.reason()) and (outside := paths_in(stored)):
            raise importing.Untrusted(f"{outside[0]} is a file of this machine, and {why}: --trust reads it")
        return spec
    except FileNotFoundError as error:
        raise UserError(f"checkpoint: there is no {file}, so say which run it was: --task, --model, --size") from error
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint: {file} does not name a run: {one_line(error)}") from error


def read_solution(
    checkpoint: Path, spec: RunSpec, split: str, samples: int | None, *, double: bool = False
) -> Solution:
    """The model of a checkpoint with the first `samples` of a split of its task's data.

    Raises:
        UserError: a checkpoint of another model, or of other data.
    """
    check_checkpoint(checkpoint)
    task, name, preset = check_run(spec)
    data = read_data(load(spec.task), preset, spec.data)
    with quiet():
        model: Any = read_model(task, name, checkpoint)
    task.suits(model, data)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    dataset: Any = {"train": train_part(data, None), "validation": data.validation, "test": data.test}[split]
    solution = gather(model, dataset, task.collate(data), samples)
    if double:  # once gathered: that takes the batches as they are
        model.double()
        solution.batches = [({k: _double(v) for k, v in batch.items()}, n) for batch, n in solution.batches]
    return solution


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
