"""One line about a task: which model was trained on what data, for how long, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hf_optim.core.wording import either
from hf_optim.experiment.own_training import MODEL as OWN
from hf_optim.hub.schedules import described
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number

#: overrides that the line tells anyway
TOLD = ("steps", "epochs", "batch_size", "max_grad_norm", "precision")
#: so many different values are listed; of more, the ends are told
FEW = 3


def line(results: Results, task: Mapping[str, Any]) -> str:
    """From the records of the judged runs that finished; what runs of before did not write down is left out. Where runs
    differ, all that they had is told.
    """
    here = [
        results.records[run.id] for run in results.plan.runs if run.task == task["label"] and run.id in results.records
    ]
    fine = [record for record in here if record["status"] == "ok"]
    own = task["model"] == OWN

    def seen(place: str, key: str) -> list[Any]:
        values = ((record.get(place) or {}).get(key) for record in fine)
        return [value for value in dict.fromkeys(values) if value is not None]

    facts = [f"{task['title']}, {task['task']}" + ("" if own else f"/{task['model']}, size {task['size']}")]
    facts += [f"{told} parameters"] if (told := _either(seen("memory", "parameters"))) else []
    facts += [str(note) for note in (seen("data", "note") or seen("data", "name"))[:2]]
    sizes = {split: _either(seen("data", f"{split}_samples")) for split in ("train", "validation", "test")}
    counts = [f"{count} {split}" for split, count in sizes.items() if count]
    facts += [f"samples: {', '.join(counts)}"] if sizes["train"] else []
    # What the plan knows serves runs that did not write it down.
    batches = seen("execution", "batch_size") or ([task["batch"]] if fine and not own and task.get("batch") else [])
    facts += [f"batch size {told}"] if (told := _either(batches)) else []
    epochs = f" ({told} epochs)" if (told := _either(seen("time", "epochs"))) else ""
    facts += [f"{told} steps{epochs}"] if (told := _either(seen("time", "steps"))) else []
    given = [described(task["schedule"])] if task.get("schedule") else []
    facts += [f"schedule {told}"] if (told := _either(seen("execution", "schedule") or given)) else []
    facts += [_clipping(norms)] if (norms := seen("execution", "max_grad_norm")) else []
    facts += [str(told)] if (told := _either(seen("execution", "precision"))) else []
    changed = [f"{key} {value}" for key, value in (task.get("overrides") or {}).items() if key not in TOLD]
    facts += [f"in place of the preset's: {', '.join(changed)}"] if changed else []
    return " · ".join(facts)


def _either(values: Iterable[Any]) -> str:
    """ "64", "32 or 64", "100 to 400", and of texts all of them; empty without any."""
    listed = list(values)
    counted = all(number(value) == value for value in listed)
    ordered = sorted(listed) if counted else list(map(str, listed))
    shown = [f"{value:,g}" if isinstance(value, float) else f"{value:,}" if counted else value for value in ordered]
    return f"{shown[0]} to {shown[-1]}" if counted and len(shown) > FEW else either(shown)


def _clipping(norms: Iterable[Any]) -> str:
    said = _either(norms)
    return "no clipping" if said == "0" else f"gradients clipped to a norm of {said}"
