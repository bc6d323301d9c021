"""Writes docs/gpu.md from docs/gpu.json, which scripts/gpu.sh writes on a machine with a GPU; without it, it says so.

python scripts/build_gpu_docs.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORT, BEFORE, PAGE = ROOT / "docs" / "gpu.json", ROOT / "docs" / "gpu-before.json", ROOT / "docs" / "gpu.md"

HEAD = """# On a GPU

Written by `scripts/build_gpu_docs.py`. `bash scripts/gpu.sh` measures on a machine with a GPU (Python with torch and
transformers, no network): parity of every name with float64 on the CPU, what a step launches and waits for, how long
it takes beside torch's AdamW and the peers that are installed, CUDA graphs, the Trainer in three precisions with a
resume, and NCCL where there are two GPUs.
"""
NOTHING = """
## Not measured on a GPU

The Triton kernels of this version have **not been run on a GPU**. What is known of them, without one:

- Every kernel of every rule and transform runs in Triton's interpreter in the tests, on a CPU, and equals the C++
  kernel to the last bit where nothing is summed, and to rounding where something is (`tests/triton_rules.py`).
- Such sources compile to machine code for compute capabilities 8.0 and 9.0, with whole chunks read and written 16 bytes
  at a time and without a fused multiply-add (`tests/triton_compiled.py`); that was read from the code, not timed.
- Every kernel that a registered optimizer launches, in four precisions, with state in bfloat16 and in 8 bits, becomes
  machine code for compute capabilities 8.0 and 9.0 (`python scripts/compile_kernels.py`, by hand): 906 of 906. Few put
  registers on the stack: on 9.0 AGR in Adan in float64 (192 bytes) and L4's scalars (8), on 8.0 19 kernels, 16 at most.
- A captured step is recorded and replayed launch by launch in the interpreter (`tests/triton_capture.py`).
- `bash scripts/gpu.sh --device cpu` goes through the script itself.

Synchronisations, times, graphs on a device, NCCL and float16 in the Trainer are what only a GPU can show.
"""


def number(x: Any) -> str:
    """A figure for a table."""
    if x is None:
        return ""
    return f"{x:.2g}" if isinstance(x, float) and abs(x) < 0.1 else f"{x:.2f}" if isinstance(x, float) else str(x)


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(number, row))} |" for row in rows)]) + "\n"


def of_rows(section: dict[str, Any], columns: dict[str, str]) -> str:
    """A table of a section with one row a name; what failed is told instead of its figures."""
    rows = []
    for name, row in section["rows"].items():
        told = row.get("error") or row.get("not_run")
        rows.append([name, *([told] + [""] * (len(columns) - 1) if told else [row.get(k) for k in columns])])
    return table(["optimizer", *columns.values()], rows)


def parity(section: dict[str, Any]) -> str:
    text = (
        f"After {section['steps']} steps, relative distance of all weights to float64 on the CPU without kernels.\n\n"
    )
    columns = dict.fromkeys(("float64", "float32", "bfloat16", "launches", "waits", "execution"))
    return text + of_rows(section, {k: k for k in columns})


def steps(section: dict[str, Any]) -> str:
    text = "\n".join(line for line in section["columns"].splitlines() if line) + "\n"
    text = "```\n" + text + "```\n"
    for model, rows in section["rows"].items():
        text += f"\n**{model}**, copy {section['bandwidth'][model] / 1e12:.2f} TB/s\n\n"
        text += of_rows({"rows": rows}, {k: k for k in ("pipe", "host", "B", "temp", "execution")})
    first = [[name, *seconds] for name, seconds in section["first"].items()]
    return text + "\n" + table(["first step, cold", "s", "second, s"], first)


def capture(section: dict[str, Any]) -> str:
    return "Weights after replays against those after ordinary steps.\n\n" + of_rows(section, {"distance": "distance"})


def trainer(section: dict[str, Any]) -> str:
    rows = []
    for name, row in section["rows"].items():
        cells = [row.get("error", "")] if "error" in row else []
        for precision in ("fp32", "bf16", "fp16"):
            cell = row.get(precision, {})
            cells.append(cell.get("error") or (f"{cell['last']:.3f}, {cell['resume']:.1g}" if cell else ""))
        rows.append([name, *cells[-3:]])
    return "Last logged loss, and distance of a resumed run's weights to the undisturbed run's.\n\n" + table(
        ["optimizer", "fp32", "bf16", "fp16"], rows
    )


def ranks(section: dict[str, Any]) -> str:
    return "Two processes against one.\n\n" + of_rows(section, {"ddp": "DDP", "fsdp2": "FSDP2"})


def page() -> str:
    """The text of docs/gpu.md."""
    text = HEAD
    report = json.loads(REPORT.read_text()) if REPORT.exists() else None
    if report is None or report["device"] != "cuda":
        text += NOTHING
    else:
        versions = ", ".join(f"{k} {v}" for k, v in report["machine"].items() if k != "card" and v is not None)
        text += f"\n**{report['machine']['card']}**; {versions}; commit {report['commit']}, {report['when']}.\n"
        text += f"\n```bash\n{report['command']}\n```\n"
        for name, write in (("parity", parity), ("steps", steps), ("capture", capture), ("trainer", trainer),
                            ("ranks", ranks)):  # fmt: skip
            section = report["sections"].get(name)
            text += f"\n## {name.capitalize()}\n\n"
            if section is None or "not_run" in section or not section.get("rows"):
                text += f"Not run: {(section or {}).get('not_run') or (section or {}).get('failed') or 'left out'}.\n"
                continue
            text += write(section) + (
                f"\nThis section ended early: {section['failed']}.\n" if "failed" in section else ""
            )
    return text + before(json.loads(BEFORE.read_text()))


def before(figures: dict[str, Any]) -> str:
    """What was measured before there were kernels, and what a probe of the idea took."""
    text = "\n## Before, and the probe\n\n" + figures["what"] + "\n"
    for model, rows in figures["models"].items():
        text += f"\n**{model}**\n\n" + table(figures["columns"], rows)
    return text


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page())
    print(PAGE)
