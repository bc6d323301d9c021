"""The command line of one run: `hf-optim train` and `scripts/train.py`."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_optim import registry
from hf_optim.commands import overrides
from hf_optim.commands.nested import merged, take_nested
from hf_optim.commands.parser import Parser
from hf_optim.core import importing
from hf_optim.core.numerals import decimal
from hf_optim.core.safe_text import line, terminal
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment import cards, trackers
from hf_optim.experiment import record as records
from hf_optim.experiment.files import by_default, numbered, read_json, set_aside
from hf_optim.experiment.spec import OVERRIDES, SIZES, RunSpec
from hf_optim.experiment.task import check_run, load, names, names_data, read_data
from hf_optim.hub import schedules

ABOUT = "train one model with one optimizer"
NESTED = ("optimizer", "schedule")
DOTTED = (*NESTED, "model")
RUN_KEYS = {
    "output": str,
    "checkpoint_every": int,
    "resume": bool,
    "overwrite": bool,
    "quiet": bool,
    "report_to": str,
    "dry_run": bool,
    "card": str,
}

EXAMPLES = (
    "hf-optim train --task vision --model mlp --optimizer smaran --size smoke --output runs/smaran",
    "hf-optim train --task lm --data my/corpus --optimizer adamw --optimizer.lr 3e-3",
)
EPILOG = f"""
An optimizer's, a schedule's and a model's own values are given with a dot, as YAML values, to any depth:

  --optimizer smaran --optimizer.lr 0.1 --optimizer.gamma 0.9
  --optimizer adamw --optimizer.betas "[0.9, 0.99]"
  --optimizer tlr --optimizer.base adamw --optimizer.base.lr 1e-3
  --schedule cosine --schedule.warmup 0.05
  --model mlp --model.hidden_size 256

`hf-optim list` shows the optimizers, `hf-optim info NAME` what each takes. Schedules: {", ".join(schedules.SCHEDULES)}.

A --config file holds the same as YAML (options given beside it win):

  task: vision
  model: mlp
  size: small
  optimizer: {{name: tlr, gamma: 0.33, base: {{name: adamw, lr: 1e-3}}}}
  schedule: {{name: cosine, warmup: 0.05}}
  overrides: {{epochs: 3, batch_size: 128}}
  options: {{hidden_size: 256}}
  seed: 0
  output: runs/first

Several processes: torchrun --nproc_per_node 2 scripts/train.py ... (batch sizes count the whole step's samples).
Exit code: 0, 1 if the run failed (its record says why), 2 if something given was wrong, 130 if interrupted.
"""


def parser(prog: str) -> Parser:
    """The options; nested ones (`--optimizer.lr`) are taken out before."""
    command = Parser(
        prog=prog,
        description="Train one model of a task with one optimizer; leave record.json and history.jsonl in --output.",
        examples=EXAMPLES,
        epilog=EPILOG,
    )
    add = command.add_argument
    add("--config", metavar="FILE", help="a YAML file with the values below")
    add("--task", metavar="NAME", help=f"a task ({', '.join(names())}) or file.py:NAME")
    add("--model", metavar="NAME", help="one of the task's models (default: its first)")
    add(
        "--size",
        choices=SIZES,
        help="smoke: seconds, for tests; small: embedded data (default); paper: the papers' settings, for a GPU",
    )
    add(
        "--optimizer",
        metavar="NAME",
        help="an optimizer's name (default: the preset's); its values as --optimizer.KEY VALUE",
    )
    add("--seed", type=int, metavar="N", help="of the initial weights and the order of batches (default: 0)")
    add("--data", metavar="NAME|PATH", help="a data set's name, or your own parquet, CSV, text or image folder")
    add(
        "--schedule",
        metavar="NAME",
        help="a learning-rate schedule (default: the preset's); its values as --schedule.KEY VALUE",
    )
    budget = command.add_argument_group("in place of the preset's values")
    overrides.add(budget, OVERRIDES)
    run = command.add_argument_group("the run")
    run.add_argument("--output", metavar="DIR", help="the folder of the run (default: runs/ID)")
    run.add_argument(
        "--overwrite",
        action="store_true",
        default=None,
        help="run although the folder holds another run, or files that are called so",
    )
    run.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="write checkpoints, the last at the end")
    run.add_argument(
        "--resume", action="store_true", default=None, help="go on from the folder's last whole checkpoint"
    )
    run.add_argument("--report-to", metavar="NAMES", help="trackers beside history.jsonl, as tensorboard,trackio,wandb")
    run.add_argument("--dry-run", action="store_true", default=None, help="say what it costs, and write nothing")
    overrides.add_card(run)
    run.add_argument("--quiet", action="store_true", default=None, help="no lines on the way")
    return command


def main(argv: Sequence[str] | None = None, prog: str = "hf-optim train") -> int:
    """Parse, train, print the result; gives the exit code. `--help` leaves through SystemExit(0), as argparse does."""
    loud = os.environ.get("RANK", "0") == "0"
    try:
        given = _given(list(sys.argv[1:] if argv is None else argv), prog)
        run = given.run
        looks = bool(run["dry_run"] and given.config)
        with importing.refused("a dry run of a file runs none", trust=not looks, read=True, way=importing.NO_DRY_RUN):
            spec = _spec(given)
            if run["dry_run"]:
                trackers.check_names(trackers.names(run["report_to"]))
                print(terminal("\n".join(_costs(spec, run["card"]))))
                return 0
        if run["card"] is not None:
            raise UserError("--card says for which GPU costs are to be said: it belongs to --dry-run")
        folder = Path(run["output"]) if run["output"] else by_default("runs", spec.id)
        if not run["overwrite"]:
            begun = _begun(folder) or (None if run["output"] else spec)  # a folder of ours is called by the run's id
            _check_place(folder, spec, begun, resume=bool(run["resume"]))
            if run["resume"] and loud:
                _set_aside(folder)
        report_to = trackers.names(run["report_to"])
        with trackers.alone(report_to):
            from hf_optim.experiment.training import train  # torch, which a mistake need not wait for

            record = train(
                spec,
                folder,
                progress=not run["quiet"],
                checkpoint_every=run["checkpoint_every"],
                resume=bool(run["resume"]),
                report_to=report_to,
            )
    except UserError as error:
        if loud:
            print(f"error: {line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        _leave_group()
    if loud:
        print(terminal(summary(record, folder)))
    return 0 if record["status"] == "ok" else 1


def _check_place(folder: Path, spec: RunSpec, begun: RunSpec | None, *, resume: bool) -> None:
    """Raise UserError where a run would take the place of a finished one, of the checkpoints of one that is not, or of
    what somebody else calls so: `samples` and checkpoints are everybody's names. `begun` is the run that is known to
    have been in the folder.
    """
    if os.path.lexists(folder / records.RECORD):
        raise UserError(f"output: {folder} holds a finished run: choose another --output, or --overwrite it")
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
    if begun is None:
        # Where no checkpoint can be gone on with, --resume begins anew: with an empty folder, as any run does.
        last = _last_whole(folder) if resume else None
        later = [] if last is None else records.after(checkpoints, last)
        names = [records.HISTORY, *((records.SAMPLES, records.SPEC, *checkpoints) if last is None else later)]
        if there := [name for name in names if os.path.lexists(folder / name)]:
            raise UserError(
                f"output: {folder} holds {there[0]}, which would be removed and is of no run that is known: choose "
                "another --output, or --overwrite it"
            )
    elif begun != spec:
        # of one that has neither, as it was killed before, nothing is lost
        if there := [n for n in (*checkpoints, records.HISTORY, records.SAMPLES) if os.path.lexists(folder / n)]:
            what = "checkpoints" if checkpoints else there[0]
            raise UserError(
                f"output: {folder} holds {what} of another run (see its {records.SPEC}): choose another --output, or "
                "--overwrite it"
            )
    elif checkpoints and not resume:
        raise UserError(
            f"output: {folder} holds checkpoints of this run, which is not finished: --resume goes on from the last, "
            "--overwrite begins anew"
        )
    elif resume and (mine := _not_left(folder, checkpoints)):
        raise UserError(
            f"output: {folder} holds {mine[0]}, which the run cannot go on from and would remove: take it away, or "
            "--overwrite it"
        )


def _not_left(folder: Path, checkpoints: Sequence[str]) -> list[str]:
    """Those that stand in the way of a run that goes on, and that it has not left there as it was killed. Where it
    begins anew that is one at the most, the first that it was writing.
    """
    from hf_optim.experiment.checkpoint import is_cut_short

    def is_somebodys(name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):  # the first process has set it aside meanwhile
            return not is_cut_short(folder / name) and os.path.lexists(folder / name)
        return False

    later = _later(folder, checkpoints)
    return [name for name in later if is_somebodys(name)] or later[:-1]


def _later(folder: Path, checkpoints: Iterable[str]) -> list[str]:
    """Those after the last that a run goes on from: all where there is none."""
    last = _last_whole(folder)
    return sorted(checkpoints, key=records.step_of) if last is None else records.after(checkpoints, last)


def _set_aside(folder: Path) -> None:
    """What a killed run left of the checkpoint that it was writing makes room, and is kept: it may be anything else."""
    for name in _later(folder, (path.name for path in folder.glob("checkpoint-*"))):
        new = set_aside(folder, name, numbered(f"unfinished-{records.step_of(name)}"))
        print(line(f"{folder / name} was not written whole: it is called {new} now"), file=sys.stderr)


def _begun(folder: Path) -> RunSpec | None:
    """The run that was begun in the folder: one with checkpoints says so before it has any."""
    try:
        return RunSpec.from_dict(read_json(folder, records.SPEC))
    except (OSError, ValueError, TypeError):
        return None


def _last_whole(folder: Path) -> int | None:
    """The step of the checkpoint that a run goes on from."""
    from hf_optim.experiment.checkpoint import last_checkpoint

    last = last_checkpoint(folder, training=True)
    return None if last is None else records.step_of(Path(last).name)


def _costs(spec: RunSpec, card: str | None) -> list[str]:
    from hf_optim.experiment import forecast

    with importing.refused("a dry run runs none", read=True), contextlib.suppress(importing.Untrusted):
        registry.check_names(spec.optimizer)
        registry.check_values(spec.optimizer)
    if card is None:  # else the run may be one of another machine
        _check_data(spec)
    return forecast.lines([(spec.id, spec.to_dict(), 1)], None if card is None else cards.find(card), strict=True)


def _check_data(spec: RunSpec) -> None:
    """Raise the run's own UserError where its data are a path that leads nowhere; nothing is read of one that is."""
    if spec.data is None or importing.is_path(spec.task) or names_data(spec.task, spec.data):
        return
    if not os.path.lexists(spec.data) and not glob.glob(f"{glob.escape(spec.data)}.*"):  # NAME.de and NAME.en
        task, _, preset = check_run(spec)
        read_data(task, preset, spec.data)


@dataclass(frozen=True)
class _Given:
    """A command line and its --config file, read, before any name in them is looked up."""

    options: dict[str, Any]
    nested: dict[str, dict[str, Any]]
    config: dict[str, Any]
    run: dict[str, Any]  # of `RUN_KEYS`, from either


def parse(argv: list[str], prog: str = "hf-optim train") -> tuple[RunSpec, dict[str, Any]]:
    """The spec of a command line, and what concerns the run's folder (`RUN_KEYS`)."""
    given = _given(argv, prog)
    return _spec(given), given.run


def _given(argv: list[str], prog: str) -> _Given:
    plain, nested = take_nested(argv, DOTTED)
    options = {key: value for key, value in vars(parser(prog).parse_args(plain)).items() if value is not None}
    config = _read_config(options.pop("config")) if "config" in options else {}
    run = {key: options.pop(key, config.pop(key, None)) for key in RUN_KEYS}
    for key, kind in RUN_KEYS.items():
        if run[key] is not None and type(run[key]) is not kind:
            raise UserError(f"{key}: expected {kind.__name__}, got {run[key]!r}")
    return _Given(options, nested, config, run)


def _spec(asked: _Given) -> RunSpec:
    options, nested, config = dict(asked.options), asked.nested, asked.config
    changes = dict(_mapping(config, "overrides"))
    given = {key: options.pop(key) for key in OVERRIDES if key in options}
    for unit, other in (("steps", "epochs"), ("epochs", "steps")):
        if unit in given and other not in given:
            changes.pop(other, None)
    changes.update(given)
    values: dict[str, Any] = {"size": "small", "seed": 0, **config, "overrides": changes}
    for key in NESTED:
        name = options.pop(key, None)
        base = {"name": values[key]} if isinstance(values.get(key), str) else dict(_mapping(values, key))
        if name is not None:
            # Another optimizer does not inherit the values of the file's.
            base = {**base, "name": name} if base.get("name") == name else {"name": name}
        values[key] = merged(base, nested[key]) or None
    options_of_model = {**_mapping(config, "options"), **nested["model"]}
    values.update(options, options=options_of_model)
    if not values.get("task"):
        raise UserError(f"--task is missing: choose from {', '.join(names())}")
    default = _preset_optimizer(values)
    chosen = values["optimizer"]
    values["optimizer"] = {**default, **(chosen or {})} if "name" not in (chosen or {}) else chosen
    if values["schedule"] is not None and "name" not in values["schedule"]:
        raise UserError("--schedule.KEY needs a --schedule NAME")
    spec = RunSpec.from_dict(values)
    with contextlib.suppress(importing.Untrusted):  # an optimizer's code that is not run; a task's was refused before
        check_run(spec)
    return spec


def summary(record: Mapping[str, Any], folder: Path) -> str:
    """A few lines for the terminal."""
    if record["status"] != "ok":
        return f"failed: {line(record['error'])}\nrecord: {line(folder / 'record.json')}"
    metrics = record["metrics"]
    shown = [key for key in metrics if key.startswith("test_")] + [key for key in metrics if key.endswith("_gap")]
    width = max(map(len, shown), default=0)
    lines = [f"  {key:<{width}} {decimal(metrics[key], 4)}" for key in shown]
    clock = record["time"]
    each = clock.get("step_ms_median")  # none where a run that went on had no step left, or trains by itself
    speed = "" if each is None else f", {each:.2f} ms a step"
    lines.append(f"  {counted(clock['steps'], 'step')} in {clock['train_seconds']:.1f} s{speed}")
    return "\n".join([*lines, f"record: {line(folder / 'record.json')}"])


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    entry = values.get(key) or {}
    if not isinstance(entry, Mapping):
        raise UserError(f"{key}: expected a mapping, got {entry!r}")
    return entry


def _preset_optimizer(values: Mapping[str, Any]) -> dict[str, Any]:
    task = load(values["task"])
    return dict(task.preset(task.model_named(values.get("model")), values["size"]).optimizer.value)


def _read_config(file: str) -> dict[str, Any]:
    """The YAML file as plain values; an unknown key is named with its line."""
    from hf_optim.study.plan.source import read

    valid = ("task", "model", "size", "optimizer", "seed", "data", "schedule", "overrides", "options", *RUN_KEYS)
    try:
        source = read(Path(file))
    except UserError as error:
        raise UserError(f"--config: {error}") from None
    if not isinstance(source.value, dict):
        raise UserError(f"--config: {file} must hold a mapping, as the example of --help")
    if source.value.get("overwrite"):  # of whatever folder the file names as its output
        raise source.error(
            ("overwrite",), "overwrite takes away what others have made: give --overwrite beside --config"
        )
    return dict(source.check_keys((), source.value, valid))


def _leave_group() -> None:
    """Take the processes of torchrun apart in order; without torch loaded there are none."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
