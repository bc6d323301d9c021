"""The report's section on a ladder: one picture for a slide, the trends, the speed-ups, the rates, the batch sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hf_optim.core.text import html as escape
from hf_optim.study.findings import ladder as findings
from hf_optim.study.findings.ladder import Ladder
from hf_optim.study.findings.ladder_rates import Rate
from hf_optim.study.findings.speedups import text as speedup_text
from hf_optim.study.folder.results import Results
from hf_optim.study.report.charts import COLOURS
from hf_optim.study.report.ladder_charts import Series, drawing, panel, short
from hf_optim.study.report.pieces import html_table
from hf_optim.study.statistics.intervals import Estimate
from hf_optim.study.statistics.paired import NAN

SLIDE = (1080, 400)
MOST = 16.0  # speed-ups beyond are drawn at the edge
HOW = (
    "Points are means over units with 95 % t-intervals. Lines: over tokens ln loss = a - alpha ln N - beta ln D, "
    "fitted to an optimizer's rungs unit by unit, one line for each size; over FLOPs and seconds one straight line on "
    "log axes. Bands are 95 % intervals over units. Intervals hold singly and give no verdict; a law without an "
    "irreducible loss must not be followed far beyond its rungs."
)
SPEED = (
    "How many times its tokens {tuned} {baseline} needs for the loss that the other has at its end. “From complete "
    "budgets”: a factor belongs to the interval unless a paired t-test rejects it; what {baseline}'s budgets do not "
    "bound is “more than” or “less than”. “Fitted” divides the advantage in ln loss by {baseline}'s own slope against "
    "ln tokens and so goes beyond them; the trend is that of the fitted factors."
)


def section(results: Results, styles: Mapping[str, str]) -> str:
    """HTML; empty for a study without a ladder, or before anything of it has run."""
    found = findings.build(results)
    if found is None or not found.points:
        return ""
    parts = [
        '<h2 id="ladder">The ladder</h2>',
        f"<figure><figcaption><span>{escape(results.plan.title)}</span></figcaption>"
        f'<div class="scroll">{slide(found, styles)}</div></figure>',
        f'<p class="soft">{escape(HOW)} FLOPs of training: as the runs counted them (products of '
        f"matrices, all passes), else {escape(found.counted)}; an optimizer's own arithmetic is not in them.</p>",
        f'<div class="grid2">{_over(found, styles, "flops", "FLOPs")}'
        f"{_over(found, styles, 'seconds', 'seconds')}</div>",
        _trends(found),
        _speeds(found),
        _rates(found, styles),
        _batches(found, styles),
        _needs(found),
    ]
    return "".join(part for part in parts if part)


def slide(found: Ladder, styles: Mapping[str, str]) -> str:
    """One SVG: loss against tokens on the left, the speed-up over the baseline against size on the right."""
    width, height = SLIDE
    left = drawing(_series(found, "tokens"), styles, "tokens", f"{_words(found)}, log axes", 0, width / 2, height)
    shown = [s for s in found.speeds if s.fitted.value > 0]
    right: list[str] = []
    if shown:
        series = [
            Series(label, [(s.rung["parameters"], s.fitted) for s in shown if s.optimizer == label], joined=True)
            for label in dict.fromkeys(s.optimizer for s in shown)
        ]
        name = f"speed-up in tokens over {_tuned(found)} {found.baseline} (fitted)"
        right = drawing(series, styles, "parameters", name, width / 2, width / 2, height, at=1.0, most=MOST)
    return (
        f'<svg class="forest ladder" viewBox="0 0 {width} {height}" role="img" aria-label="the ladder">'
        + "".join([*left, *right])
        + "</svg>"
    )


def _words(found: Ladder) -> str:
    return found.metric.replace("_", " ")


def _series(found: Ladder, axis: str) -> list[Series]:
    made = []
    for label in dict.fromkeys(p.optimizer for p in found.points):
        points = [(float(getattr(p, axis)), p.loss) for p in found.points if p.optimizer == label]
        lines = [
            list(zip(one.x, one.y, strict=True)) for one in found.lines if (one.optimizer, one.axis) == (label, axis)
        ]
        made.append(Series(label, sorted(points, key=lambda p: p[0]), lines))
    return made


def _over(found: Ladder, styles: Mapping[str, str], axis: str, name: str) -> str:
    drawn = panel(f"loss over {name}", _series(found, axis), styles, f"{name} of training", _words(found))
    return f"<figure><figcaption><span>Loss against {name}</span></figcaption>{drawn}</figure>"


def _trends(found: Ladder) -> str:
    if not found.trends:
        return ""
    ahead = found.trends[0]
    head = ["optimizer", "beta (tokens)", "alpha (size)", "off the rungs", f"at {short(ahead.next_parameters)}"]
    lines = [
        _row(
            t.optimizer,
            [
                _text(t.tokens, 3),
                _text(t.size, 3),
                "–" if math.isnan(t.off) else f"{t.off:.2g} %",
                _text(t.next_loss, 3),
            ],
        )
        for t in found.trends
    ]
    note = (
        f"The last column is what the law says of {short(ahead.next_parameters)} parameters and "
        f"{short(ahead.next_tokens)} tokens: an extrapolation. Without an alpha, size and tokens only grow "
        "together, and beta is of both."
    )
    return f'<h3>The trend</h3>{html_table(head, lines, "The trend")}<p class="soft">{note}</p>'


def _speeds(found: Ladder) -> str:
    if not found.speeds:
        return ""
    trends = {(t.optimizer, t.multiple): t for t in found.speed_trends}
    head = ["optimizer", "rung", "from complete budgets", "fitted", "fitted factor, × per tenfold size"]
    lines = []
    for s in found.speeds:
        trend = trends.get((s.optimizer, s.rung["multiple"]))
        tenfold = _text(trend.tenfold, 2) if trend else "–"
        lines.append(_row(s.optimizer, [s.rung["task"], speedup_text(s.bounded), _text(s.fitted, 2), tenfold]))
    note = escape(SPEED.format(tuned=_tuned(found), baseline=found.baseline))
    made = html_table(head, lines, "Speed-up over the baseline")
    return f'<h3>Speed-up over {_tuned(found)} {escape(found.baseline)}</h3>{made}<p class="soft">{note}</p>'


def _tuned(found: Ladder) -> str:
    return "tuned" if found.tuned else "untuned"


def _rates(found: Ladder, styles: Mapping[str, str]) -> str:
    if not found.rates:
        return ""
    labels = list(dict.fromkeys(r.optimizer for r in found.rates))
    best = [
        Series(label, [(r.rung["parameters"], r.best) for r in found.rates if r.optimizer == label and r.rung["all"]])
        for label in labels
    ]
    figures = [
        "<figure><figcaption><span>Best rate against size</span></figcaption>"
        f"{panel('best rate against size', best, styles, 'parameters', 'chosen rate')}</figure>"
    ]
    for label in labels:
        mine = [r for r in found.rates if r.optimizer == label and r.rung["all"]]
        sizes = sorted({r.rung["size"] for r in mine})
        drawn = panel(
            f"{label}: loss over its rate",
            [_tried(label, r, sizes.index(r.rung["size"])) for r in mine],
            styles, "rate", "validation loss of every trial",
        )  # fmt: skip
        caption = f"<figcaption><span>{escape(label)}: loss over its rate</span></figcaption>"
        figures.append(f"<figure>{caption}{drawn}</figure>")
    head = ["optimizer", "rung", "best rate", "chosen", "at an end of the range"]
    lines = [
        _row(
            r.optimizer,
            [
                r.rung["task"],
                _text(r.best, 3, "g"),
                ", ".join(f"{v:.2g}" for v in r.chosen),
                f"{r.at_edge} of {len(r.chosen)}",
            ],
        )
        for r in found.rates
    ]
    table = f"<details><summary>Chosen rates</summary>{html_table(head, lines, 'Chosen rates')}</details>"
    return f'<h3>Rates</h3><div class="grid2">{"".join(figures)}</div>{table}{_carried(found)}'


def _tried(label: str, rate: Rate, colour: int) -> Series:
    points = [(v, Estimate(loss, NAN, NAN)) for v, loss in rate.tried]
    return Series(label, points, (), short(rate.rung["size"]), style=f"k{colour % COLOURS} d0")


def _carried(found: Ladder) -> str:
    if not found.carried:
        return ""
    head = ["optimizer", "rung", "own rate", "the smallest size's", "carrying costs", "failed"]
    lines = [
        _row(
            c.optimizer,
            [c.rung["task"], _text(c.own, 3), _text(c.carried, 3), _text(c.costs, 3, signed=True), str(c.failed)],
        )
        for c in found.carried
    ]
    note = "Loss at a larger size with the settings that were chosen at the smallest one, paired by unit."
    return f'<h3>The rate carried over</h3>{html_table(head, lines, "The rate carried over")}<p class="soft">{note}</p>'


def _batches(found: Ladder, styles: Mapping[str, str]) -> str:
    if not found.batches:
        return ""
    parts = []
    for size in dict.fromkeys(b.size for b in found.batches):
        here = [b for b in found.batches if b.size == size]
        series = [
            Series(label, [(b.batch_size, b.steps) for b in here if b.optimizer == label], joined=True)
            for label in dict.fromkeys(b.optimizer for b in here)
        ]
        drawn = panel("steps against batch size", series, styles, "batch size (samples)", "steps to the loss")
        caption = f"{short(size)} parameters: steps to a loss of {here[0].target:.3f}"
        lines = [_row(b.optimizer, [str(b.batch_size), _text(b.steps, 0), short(b.tokens.value)]) for b in here]
        table = html_table(["optimizer", "batch", "steps", "tokens"], lines, "Batch sizes")
        parts.append(f"<figure><figcaption><span>{caption}</span></figcaption>{drawn}</figure><div>{table}</div>")
    note = "By the law of each batch size's complete budgets; the loss is the hardest that the baseline always reaches."
    return f'<h3>Batch size</h3><div class="grid2">{"".join(parts)}</div><p class="soft">{note}</p>'


def _needs(found: Ladder) -> str:
    if found.cost is None:
        return ""
    c = found.cost
    text = (
        f"<p>A unit costs {short(c.tokens_a_unit)} training tokens, trials and runs together; {c.units} were looked "
        f"at. {c.more} units would find differences of {c.finds:.1f} deviations, for "
        f"{short((c.more - c.units) * c.tokens_a_unit)} more tokens.</p>"
    )
    if found.needs:
        head = ["without a verdict", "seen, in deviations", "units", "tokens"]
        lines = [
            _row(
                n.what, [f"{n.seen:.2f}", f"{n.units:g}" if math.isfinite(n.units) else "over 1000", _tokens(n.tokens)]
            )
            for n in found.needs
        ]
        text += html_table(head, lines, "The ladder")
        text += '<p class="soft">Units at which a difference as large as the one seen is found with 80 %: a guess.</p>'
    return f"<h3>What would decide the rest</h3>{text}"


def _tokens(value: float) -> str:
    return short(value) if math.isfinite(value) else "–"


def _text(one: Estimate, decimals: int, kind: str = "f", signed: bool = False) -> str:
    """1.40 [1.20, 1.71]; a dash where there is nothing."""
    if math.isnan(one.value):
        return "–"
    shape = f"{'+' if signed else ''}.{decimals}{kind}"
    ends = "" if math.isnan(one.low) else f" [{one.low:{shape}}, {one.high:{shape}}]"
    return f"{one.value:{shape}}{ends}"


def _row(label: str, cells: Sequence[str]) -> str:
    return f"<tr><td>{escape(label)}</td>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
