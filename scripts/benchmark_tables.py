"""What `benchmark_step.py` has measured, as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: against which all are measured
FUSED = "torch AdamW fused"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: all that was measured, a line a row."""
    lines = [
        "| model | threads | optimizer | bytes | x F | (quartiles) | x B | ms | temporaries, bytes/parameter |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["F quartiles"]
        lines.append(
            f"| {r['model']} | {r['threads']} | {r['optimizer']} | {r['bytes']:.0f} | {r['F']:.2f} "
            f"| {low:.2f}-{high:.2f} | {r['B']:.2f} | {r['milliseconds']:.2f} | {r['temporaries per parameter']:.2f} |"
        )
    return "\n".join(lines)


def wide(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line an optimizer, and under each model and number of threads `x F / x B`; fused AdamW once."""
    panels = sorted({(r["model"], r["threads"]) for r in rows})
    cells = {
        (r["rule"], r["optimizer"], r["model"], r["threads"]): f"{r['F']:.2f} / {r['B']:.2f}"
        for r in rows
        if r["optimizer"] != FUSED or r["rule"] == "adamw"
    }
    size = {
        (r["rule"], r["optimizer"]): r["bytes"] for r in rows if (r["rule"], r["optimizer"]) in {k[:2] for k in cells}
    }
    heads = [f"{model}, {threads} thread{'s' * (threads > 1)}" for model, threads in panels]
    lines = [f"| optimizer | bytes | {' | '.join(heads)} |", "|---|---|" + "---|" * len(panels)]
    for (rule, optimizer), moved in sorted(size.items(), key=lambda item: item[0][0]):
        found = [cells.get((rule, optimizer, *panel), "") for panel in panels]
        lines.append(f"| {optimizer} | {moved:.0f} | {' | '.join(found)} |")
    return "\n".join(lines)


def first_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: seconds of the first two steps, in a process that finds nothing built and in a later one."""
    lines = [
        "| optimizer | first step, nothing cached, s | second | first, in a later process | second |",
        "|" + "---|" * 5,
    ]
    lines += [f"| {r['optimizer']} | {' | '.join(f'{t:.2f}' for t in (*r['cold'], *r['cached']))} |" for r in rows]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of x B, a panel a model and number of threads: our kernels, and in grey others; not the rules as written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(r["threads"], r["model"]) for r in rows})
    most = max(sum((r["threads"], r["model"]) == panel for r in rows) for panel in panels)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 0.24 * most + 1.2), squeeze=False)
    for axis, (threads, model) in zip(axes[0], panels, strict=True):
        own = [r for r in rows if (r["threads"], r["model"]) == (threads, model)]
        own = [r for r in own if r["optimizer"] != FUSED or r["rule"] == "adamw"]
        own = [
            r for r in own if "kernels" in r["execution"] or not r["execution"]
        ]  # as written is far from all of them
        own.sort(key=lambda r: r["rule"], reverse=True)
        colours = ["#e45756" if r["execution"] else "#999" for r in own]
        axis.barh([r["optimizer"] for r in own], [r["B"] for r in own], color=colours)
        axis.axvline(1, color="#444", linewidth=1)
        axis.margins(y=0.005)
        axis.set(title=f"{model}, {threads} thread{'s' * (threads > 1)}", xlabel="time of a step / bound")
    figure.tight_layout()
    figure.savefig(path)
