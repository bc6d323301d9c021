"""What a run costs, said before it: operations, memory and hours, here (measured by a few steps) or on a named card.

Everything is seen on random data of the preset's form (`Task.synthetic`), so nothing is read or downloaded. It is the
training alone: evaluations, generated images and what reading takes are not in it, nor the further passes of line
searches.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hf_optim import registry
from hf_optim.core.importing import Untrusted
from hf_optim.core.numerals import size_text
from hf_optim.core.rewind import RandomState
from hf_optim.core.wording import counted
from hf_optim.errors import UserError, of_memory
from hf_optim.experiment import flops, footprint, record
from hf_optim.experiment.budget import budget
from hf_optim.experiment.cards import LEAST_STEP, UTILISATION, Card
from hf_optim.experiment.evaluator import quiet
from hf_optim.experiment.precision import check_precision, products
from hf_optim.experiment.spec import AUTO, RunSpec
from hf_optim.experiment.task import Data, Preset, Task, Value, check_run, load

#: steps that are measured after one that is not, seconds after which they are enough, and samples of each on a CPU to
#: begin with, as a whole batch may take longer than that
STEPS, ENOUGH, SAMPLES = 3, 2.0, 2
#: layers of a model that is looked at, by the options that count them: ten times as many are minutes
MOST_LAYERS = 1000
LAYERS = ("n_layer", "num_hidden_layers", "num_layers", "layers", "layers_per_block", "depth", "depths", "block_config")
#: seconds of measuring after which what is left is told by its operations
PATIENCE = 30.0


@dataclass(frozen=True)
class Forecast:
    """Of one run: its steps, the operations and bytes of memory that they take, and their seconds."""

    steps: int
    flops: int
    memory: int
    seconds: float

    def sentence(self) -> str:
        """In words."""
        memory = size_text(self.memory)
        return f"{counted(self.steps, 'step')}, {self.flops:.2g} FLOPs, {memory}, {duration(self.seconds)}"


def duration(seconds: float) -> str:
    """Seconds in words, for estimates."""
    hours = seconds / 3600
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


def stand_in(task: Task, model: str, preset: Preset, source: str | None) -> Data | None:
    """Synthetic data of the preset's form, or of that of a set of the task's own that `source` names."""
    if source is not None and source in task.embedded:
        preset = replace(preset, data=Value(source))
    return task.synthetic(model, preset)


@dataclass
class Seen:
    """What passes took before, by what it hangs on (`_pass_key`; the seconds on the samples, too)."""

    passes: dict[str, tuple[flops.PassCost, footprint.Footprint]] = field(default_factory=dict)
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)


def forecast(spec: RunSpec, card: Card | None, rate: float | None = None, seen: Seen | None = None) -> Forecast | None:
    """The cost of a run on `card`, or here; None for a task without synthetic data.

    Args:
        rate: operations a second that are reached here; None: a few steps are measured.
        seen: what passes took before, and now this one's.

    Raises:
        UserError: what the run itself would refuse, and what does not fit into the memory under `auto`.
    """
    task, name, preset = check_run(spec)
    data = stand_in(task, name, preset, spec.data)
    if data is None:
        return None
    seen = Seen() if seen is None else seen
    samples = data.facts["train_samples"]
    numbers = budget(spec, preset, min(samples, preset.samples.value or samples), 1)
    if card is None:
        check_precision(numbers.precision)

    @functools.cache
    def model() -> nn.Module:
        with quiet():
            return task.model(name, preset, data)

    state = RandomState()
    try:
        key = _pass_key(spec, numbers.precision)
        if key not in seen.passes:
            if ":" not in spec.task:  # code of your own may keep what it makes, which would have no values then
                _check_room(task, name, preset, data, 1 if card else 2)
            optimizer = registry.build(spec.optimizer, model())
            batch = flops.probe(data.train, task.collate(data))
            see = footprint.measure if card is None and torch.cuda.is_available() else footprint.estimate
            needs = see(model(), footprint.slots_of(optimizer), batch, numbers.precision)
            seen.passes[key] = flops.pass_cost(model(), batch), needs
        cost, needs = seen.passes[key]
        room = footprint.available() if card is None else int(footprint.SPARE * 1e9 * card.gigabytes)
        if spec.overrides.get("gradient_accumulation_steps") == AUTO:
            numbers = numbers.in_parts(needs.parts(numbers.per_device, room))
        total = cost.both * numbers.batch * numbers.steps
        if card is not None:
            seconds = max(total / card.operations(numbers.precision), numbers.steps * LEAST_STEP)
        elif rate is not None:
            seconds = total / rate
        else:
            if (key, numbers.per_device) not in seen.seconds:
                with products(numbers.precision):
                    each = _measured(model(), task, data, numbers.per_device, numbers.precision)
                seen.seconds[key, numbers.per_device] = each
            seconds = seen.seconds[key, numbers.per_device] * numbers.accumulation * numbers.steps
    finally:
        state.restore()
    return Forecast(numbers.steps, total, needs.of(numbers.per_device), seconds)


def _check_room(task: Task, name: str, preset: Preset, data: Data, copies: int) -> None:
    """Raise a UserError where so many times a model's weights (their gradients, too, if a step is made) are more than
    the machine's memory, or its layers are more than any model has, before any of them is made.
    """
    from hf_optim.experiment.configuration import whole_numbers

    values = preset.model.value
    if deep := [key for key in LAYERS if sum(whole_numbers(values.get(key))) > MOST_LAYERS]:
        raise UserError(f"options: {deep[0]}: more than {MOST_LAYERS:,} layers are not looked at beforehand")
    with quiet(), torch.device("meta"):
        needed = copies * sum(p.numel() * p.element_size() for p in task.model(name, preset, data).parameters())
    if needed > (room := int(footprint.SPARE * footprint.machine())):
        raise UserError(f"to look at it takes {size_text(needed)}, and there are {size_text(room)} to plan with")


def _pass_key(spec: RunSpec, precision: str) -> str:
    """Of runs whose passes are the same; what ends a run, or cuts its batches, is no part of it, nor are the values of
    an optimizer, whose class says what it keeps.
    """
    parts = [spec.task, spec.model, spec.size, spec.data, spec.options, spec.optimizer["name"], precision]
    return json.dumps(parts, default=str)


def _measured(model: nn.Module, task: Task, data: Data, samples: int, precision: str) -> float:
    """Seconds of a forward and a backward pass of so many samples on the device at hand; on a CPU of as many as do not
    take long, scaled up: of very few most of the time is none of theirs.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: Any = data.train
    fetch = getattr(rows, "__getitems__", lambda indices: [rows[index] for index in indices])
    collate: Any = task.collate(data)
    model = model.to(device).train()

    def fastest(taken: int) -> float:
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in collate(fetch(range(taken))).items()}
        seconds: list[float] = []
        while len(seconds) <= STEPS and sum(seconds) < ENOUGH:
            begun = time.perf_counter()
            with footprint.autocast(precision, device):
                loss = flops.loss_of(model(**batch))
            loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
        return min(seconds)  # the first one warms up, and is all there is where it takes long

    taken = samples if device == "cuda" else min(samples, SAMPLES)
    while True:
        seconds = fastest(taken)
        scaled = seconds * samples / taken
        if taken == samples or 4 * seconds > ENOUGH:
            return scaled
        taken = samples if scaled < ENOUGH else min(4 * taken, samples)


def lines(
    specs: Iterable[tuple[str, Mapping[str, Any], int]],
    card: Card | None,
    *,
    jobs: int | None = None,
    strict: bool = False,
) -> list[str]:
    """What runs cost, a line for each of (label, specification of one of them, how many), and all of them together.

    Args:
        jobs: so many run at a time, on a CPU with one thread each, as a study's do; None: one alone, with all threads.
        strict: what a run would refuse is raised, as it would say it; among many one that cannot be run is a line.
    """
    told, total, runs, unknown, begun = [], 0.0, 0, False, time.monotonic()
    seen = Seen()
    largest: Forecast | None = None  # of the steps that were measured: small ones say little of the others
    single = card is None and jobs is not None and not torch.cuda.is_available()
    with _one_thread() if single else nullcontext():
        for label, spec, count in specs:
            late = card is None and largest is not None and time.monotonic() - begun > PATIENCE
            rate = largest.flops / largest.seconds if late and largest is not None else None
            try:
                estimate = forecast(RunSpec.from_dict(spec), card, rate, seen)
                why = load(spec["task"]).unforeseen
            except (UserError, MemoryError, RuntimeError) as error:
                if not (isinstance(error, UserError) or of_memory(error)):
                    raise
                if strict and not isinstance(error, Untrusted):  # code that a dry run does not run may do well
                    raise
                estimate, why = None, str(error) if isinstance(error, UserError) else "there is not enough memory"
            unknown = unknown or estimate is None
            if estimate is not None and rate is None and (largest is None or _a_step(estimate) > _a_step(largest)):
                largest = estimate
            total += estimate.seconds * count if estimate else 0.0
            runs += count
            cost = estimate.sentence() if estimate else f"of unknown cost ({why})"
            cost += ", by its operations alone" if estimate and rate is not None else ""
            told.append(f"  {label}: {counted(count, 'run')}, each {cost}")
            room = 1e9 * card.gigabytes if card else footprint.available() / footprint.SPARE
            if estimate and estimate.memory > room:
                told[-1] += f": more than the {size_text(room)} there are (gradient_accumulation_steps: auto)"
    each = ", one thread each" if single else ""
    at_once = min(jobs, runs) if single and jobs is not None else 1
    together = f"about {duration(total / at_once)} with {at_once} at a time" if at_once > 1 else "one after the other"
    here = f"here ({_here()}{each}), by a few steps of each"
    return [
        f"costs {f'on {card.name}, at {UTILISATION:.0%} of its peak' if card else here}:",
        *told,
        f"  in all {duration(total)} of steps, {together}{', and more' if unknown else ''}; starting and "
        "evaluating come on top, seconds for each run"
        if total
        else "  in all unknown",
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _a_step(one: Forecast) -> float:
    return one.flops / one.steps


def _here() -> str:
    return str(record.card()["card"] or record.cpu())
