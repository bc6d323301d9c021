"""What a checkpoint of a run with an attached optimizer says of the run that wrote it, beside the optimizer's state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_optim.core.foreign import label
from hf_optim.core.safe_text import line

FILE = "hf_optim.json"
#: bytes of it; ours have some hundred
LARGEST = 1 << 20


def describe(args: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """The shape of a run: processes, samples of an optimizer step, and the optimizer as it was asked for."""
    return {
        "processes": args.world_size,
        "step_samples": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "optimizer": json.loads(json.dumps(spec, default=lambda v: label(v) if callable(v) else str(v))),
    }


def folder(args: Any, step: int) -> Path:
    """Where Trainer writes the checkpoint of a step."""
    return Path(args.output_dir) / f"checkpoint-{step}"


def write(args: Any, spec: dict[str, Any], step: int, weights: str | None = None) -> None:
    """Beside the checkpoint of `step`, by the first process; `weights` says which of two an optimizer's own are saved
    (`hf_optim.hub.modes.holds`)."""
    if args.process_index == 0 and folder(args, step).is_dir():
        described = describe(args, spec) | ({} if weights is None else {"weights": weights})
        file = folder(args, step) / FILE
        file.unlink(missing_ok=True)
        with file.open("x", encoding="utf-8") as new:  # never through a link that stands there
            new.write(json.dumps(described, indent=1) + "\n")


def lost(checkpoint: Path) -> str | None:
    """A sentence where the state of optimizer or schedule is lacking: Trainer then loads neither, and says nothing."""
    # shards are a folder; optimizer.pt.part, of a copy that was cut short, is nobody's
    names = [entry.name for entry in checkpoint.iterdir() if entry.is_dir() or entry.suffix in (".pt", ".bin")]
    lacking = [part for part in ("optimizer", "scheduler") if not any(part in name for name in names)]
    if not lacking:
        return None
    return line(
        f"{checkpoint.name} has no {' and no '.join(lacking)} state: the weights go on, the optimizer and its schedule "
        "begin anew"
    )


def differences(args: Any, spec: dict[str, Any], checkpoint: str | None) -> list[str]:
    """A sentence for everything about the run that wrote `checkpoint` that is not so now; none without its file."""
    if not isinstance(checkpoint, str):
        return []
    file = Path(checkpoint) / FILE
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:  # a pipe would be waited for
            return []
        then = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(then, dict):
        return []
    now, lines = describe(args, spec), []
    if then.get("processes") != now["processes"]:
        same = then.get("step_samples") == now["step_samples"]
        effect = (
            "a step still takes as many samples, in another order"
            if same
            else f"a step took {then.get('step_samples')} samples and takes {now['step_samples']} now, at the same rate"
        )
        lines.append(
            f"the checkpoint was written by another number of processes, {then.get('processes')}, and goes on with "
            f"{now['processes']}: "
            f"the optimizer's state is the same on all and is taken over; {effect}"
        )
    elif then.get("step_samples") != now["step_samples"]:
        lines.append(
            f"a step of the run that wrote the checkpoint took {then.get('step_samples')} samples and takes "
            f"{now['step_samples']} now, at the same rate"
        )
    if then.get("optimizer") != now["optimizer"]:
        lines.append(
            f"the checkpoint's run was asked for {then.get('optimizer')}, this one for {now['optimizer']}: "
            "the hyper-parameters of the checkpoint are in force"
        )
    return [line(text) for text in lines]
