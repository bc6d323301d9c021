"""The report's section on a ladder: one picture for a slide, the trends, the speed-ups, the rates, the batch sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from hf_optim.core.numerals import decimal
from hf_optim.core.safe_text import html as escape
from hf_optim.core.wording import counted
from hf_optim.study.findings import ladder as findings
from hf_optim.study.findings.ladder import Ladder
from hf_optim.study.findings.ladder_rates import Rate
from hf_optim.study.findings.speedups import text as speedup_text
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.report.charts import COLOURS
from hf_optim.study.report.ladder_charts import Series, drawing, panel, short
from hf_optim.study.report.pieces import html_table, scroll, text_row
from hf_optim.study.statistics.intervals import Estimate
from hf_optim.study.statistics.paired import NAN

SLIDE = (1080, 400)
MOST = 16.0  # speed-ups beyond are drawn at the edge
HOW = (
    "Points are means over units with 95 % t-intervals. Lines: over tokens ln loss = a - alpha ln N - beta ln D, "
    "fitted to an optimizer's rungs unit by unit, one line for each size; over FLOPs and seconds one straight line on "
    "log axes. Bands are 95 % intervals over units. Intervals hold singly and give no verdict; a law without an "
    "irreducible loss must not be followed far beyond its rungs. Speed-ups beyond the picture stand at its edge."
)
SPEED = (
    "How many times its tokens {tuned} {baseline} needs for the loss that the other has at its end. “From complete "
    "budgets”: a factor belongs to the interval unless a paired t-test rejects it; what {baseline}'s budgets do not "
    "bound is “more than” or “less than”. “Fitted” divides the advantage in ln loss by {baseline}'s own slope against "
    "ln tokens and so goes beyond them; the trend is that of the fitted factors."
)


def section(results: Results, styles: Mapping[str, str]) -> str:
    """HTML; empty for a study without a ladder, or before anything of it has run."""
    ladder = findings.build(results)
    if ladder is None or not ladder.points:
        return ""
    parts = [
        _known(results),
        f"<figure><figcaption><span>{escape(results.plan.title)}</span></figcaption>"
        f"{scroll(slide(ladder, styles), 'The ladder')}</figure>",
        f'<p class="soft">{escape(HOW)} FLOPs of training: as the runs counted them (products of '
        f"matrices, all passes), else {escape(ladder.counted)}; an optimizer's own arithmetic is not in them.</p>",
        f'<div class="grid2">{_over(ladder, styles, "flops", "FLOPs")}'
        f"{_over(ladder, styles, 'seconds', 'seconds')}</div>",
        _trends(ladder),
        _speeds(ladder),
        _rates(ladder, styles),
        _batches(ladder, styles),
        _needs(ladder),
    ]
    return "".join(part for part in parts if part)


def known(results: Results) -> dict[str, float]:
    """Test losses that take no training, by the records: of the frequencies of tokens, which a ladder of short runs may
    hardly have gone below."""
    told = [record.get("known_losses") for record in results.records.values()]
    pairs = [pair for some in told if isinstance(some, Mapping) for pair in some.items()]
    return {name: number(value) for name, value in pairs if not math.isnan(number(value))}


def _known(results: Results) -> str:
    said = [f"{name}: a test loss of {decimal(value, 3)}" for name, value in known(results).items()]
    text = f"To compare with, {'; '.join(said)}. Who is not well below it has learnt hardly more than that."
    return f"<p><b>{escape(text)}</b></p>" if said else ""


def slide(ladder: Ladder, styles: Mapping[str, str]) -> str:
    """One SVG: loss against tokens on the left, the speed-up over the baseline against size on the right."""
    width, height = SLIDE
    left = drawing(_series(ladder, "tokens"), styles, "tokens", f"{_words(ladder)}, log axes", 0, width / 2, height)
    shown = [s for s in ladder.speeds if s.fitted.value > 0]
    right: list[str] = []
    spoken = f"The ladder: {_words(ladder)} against tokens"
    if shown:
        series = [
            Series(label, [(s.rung["parameters"], s.fitted) for s in shown if s.optimizer == label], joined=True)
            for label in dict.fromkeys(s.optimizer for s in shown)
        ]
        name = f"speed-up in tokens over {_tuned(ladder)} {ladder.baseline} (fitted)"
        spoken += f"; {name} against parameters"
        right = drawing(series, styles, "parameters", name, width / 2, width / 2, height, at=1.0, most=MOST)
    return (
        f'<svg class="forest ladder" viewBox="0 0 {width} {height}" role="img" aria-label="'
        f'{escape(spoken)}: the tables below have the numbers">' + "".join([*left, *right]) + "</svg>"
    )


def _words(ladder: Ladder) -> str:
    return ladder.metric.replace("_", " ")


def _series(ladder: Ladder, axis: str) -> list[Series]:
    series = []
    for label in dict.fromkeys(p.optimizer for p in ladder.points):
        points = [(float(getattr(p, axis)), p.loss) for p in ladder.points if p.optimizer == label]
        lines = [
            list(zip(line.x, line.y, strict=True))
            for line in ladder.lines
            if (line.optimizer, line.axis) == (label, axis)
        ]
        series.append(Series(label, sorted(points, key=lambda p: p[0]), lines))
    return series


def _over(ladder: Ladder, styles: Mapping[str, str], axis: str, name: str) -> str:
    drawn = panel(f"loss over {name}", _series(ladder, axis), styles, f"{name} of training", _words(ladder))
    return f"<figure><figcaption><span>Loss against {name}</span></figcaption>{drawn}</figure>"


def _trends(ladder: Ladder) -> str:
    if not ladder.trends:
        return ""
    ahead = ladder.trends[0]
    sizes = len({p.rung["parameters"] for p in ladder.points})
    head = ["optimizer", "beta (tokens)", "alpha (size)", "off the rungs", f"at {short(ahead.next_parameters)}"]
    lines = [
        text_row(
            t.optimizer,
            [
                _text(t.tokens, 3),
                _text(t.size, 3),
                "–" if math.isnan(t.off) else f"{t.off:.2g} %",
                _text(t.next_loss, 3),
            ],
        )
        for t in ladder.trends
    ]
    note = (
        f"The last column is what the law says of {short(ahead.next_parameters)} parameters and "
        f"{short(ahead.next_tokens)} tokens: an extrapolation. Its interval is of the units alone: by how much the law "
        "misses the rungs that were measured (off, a root mean square) is not in it; a line through two misses none. "
        "Without an alpha, size and tokens only grow together, and beta is of both."
        if sizes > 1
        else "Of one size: nothing is said of another."
    )
    return f'<h3>The trend</h3>{html_table(head, lines, "The trend")}<p class="soft">{note}</p>'


def _speeds(ladder: Ladder) -> str:
    if not ladder.speeds:
        return ""
    trends = {(t.optimizer, t.multiple): t for t in ladder.speed_trends}
    head = ["optimizer", "rung", "from complete budgets", "fitted", "fitted factor, × per tenfold size"]
    lines = []
    for s in ladder.speeds:
        trend = trends.get((s.optimizer, s.rung["multiple"]))
        tenfold = _text(trend.tenfold, 2) if trend else "–"
        lines.append(text_row(s.optimizer, [s.rung["task"], speedup_text(s.bounded), _factor(s.fitted), tenfold]))
    note = escape(SPEED.format(tuned=_tuned(ladder), baseline=ladder.baseline))
    content = html_table(head, lines, "Speed-up over the baseline")
    return f'<h3>Speed-up over {_tuned(ladder)} {escape(ladder.baseline)}</h3>{content}<p class="soft">{note}</p>'


def _tuned(ladder: Ladder) -> str:
    return "tuned" if ladder.tuned else "untuned"


def _rates(ladder: Ladder, styles: Mapping[str, str]) -> str:
    if not ladder.rates:
        return ""
    labels = list(dict.fromkeys(r.optimizer for r in ladder.rates))
    common = [r for r in ladder.rates if r.rung["all"]]
    one_size = len({r.rung["parameters"] for r in common}) == 1
    what, axis, key = (
        ("batch size", "batch size (samples)", "batch_size") if one_size else ("size", *["parameters"] * 2)
    )
    best = [Series(label, [(r.rung[key], r.best) for r in common if r.optimizer == label]) for label in labels]
    figures = [
        f"<figure><figcaption><span>Best rate against {what}</span></figcaption>"
        f"{panel(f'best rate against {what}', best, styles, axis, 'chosen rate')}</figure>"
    ]
    for label in labels:
        mine = [r for r in common if r.optimizer == label]
        drawn = panel(
            f"{label}: loss over its rate",
            [_tried(label, r, i, mine) for i, r in enumerate(mine)],
            styles, "rate", "validation loss of every trial",
        )  # fmt: skip
        caption = f"<figcaption><span>{escape(label)}: loss over its rate</span></figcaption>"
        figures.append(f"<figure>{caption}{drawn}</figure>")
    head = ["optimizer", "rung", "best rate", "chosen", "at an end of the range"]
    lines = [
        text_row(
            r.optimizer,
            [
                r.rung["task"],
                _span(r.best, "{:.3g}".format),
                ", ".join(f"{v:.2g}" for v in r.chosen),
                f"{r.at_edge} of {len(r.chosen)}",
            ],
        )
        for r in ladder.rates
    ]
    table = f"<details><summary>Chosen rates</summary>{html_table(head, lines, 'Chosen rates')}</details>"
    return f'<h3>Rates</h3><div class="grid2">{"".join(figures)}</div>{table}{_carried(ladder)}'


def _tried(label: str, rate: Rate, colour: int, among: Sequence[Rate]) -> Series:
    """A rung's trials, named by what tells it from the others: its size, its tokens a parameter, its batch size."""
    points = [(v, Estimate(loss, NAN, NAN)) for v, loss in rate.tried]
    shown = {"size": short, "multiple": "× {:g}".format, "batch_size": "batch {}".format}
    differing = [key for key in shown if len({r.rung[key] for r in among}) > 1] or ["size"]
    word = ", ".join(shown[key](rate.rung[key]) for key in differing)
    return Series(label, points, (), word, style=f"k{colour % COLOURS} d0")


def _carried(ladder: Ladder) -> str:
    if not ladder.carried:
        return ""
    head = ["optimizer", "rung", "own rate", "the smallest size's", "carrying costs", "failed"]
    lines = [
        text_row(
            c.optimizer,
            [c.rung["task"], _text(c.own, 3), _text(c.carried, 3), _text(c.costs, 3, "+"), str(c.failed)],
        )
        for c in ladder.carried
    ]
    note = "Loss at a larger size with the settings that were chosen at the smallest one, paired by unit."
    return f'<h3>The rate carried over</h3>{html_table(head, lines, "The rate carried over")}<p class="soft">{note}</p>'


def _batches(ladder: Ladder, styles: Mapping[str, str]) -> str:
    if not ladder.batches:
        return ""
    parts = []
    for size in dict.fromkeys(b.size for b in ladder.batches):
        here = [b for b in ladder.batches if b.size == size]
        series = [
            Series(label, [(b.batch_size, b.steps) for b in here if b.optimizer == label], joined=True)
            for label in dict.fromkeys(b.optimizer for b in here)
        ]
        drawn = panel("steps against batch size", series, styles, "batch size (samples)", "steps to the loss")
        caption = f"{short(size)} parameters: steps to a loss of {decimal(here[0].target, 3)}"
        lines = [text_row(b.optimizer, [str(b.batch_size), _text(b.steps, 0), short(b.tokens.value)]) for b in here]
        table = html_table(["optimizer", "batch", "steps", "tokens"], lines, "Batch sizes")
        parts.append(f"<figure><figcaption><span>{caption}</span></figcaption>{drawn}</figure><div>{table}</div>")
    note = "By the law of each batch size's complete budgets; the loss is the hardest that the baseline always reaches."
    return f'<h3>Batch size</h3><div class="grid2">{"".join(parts)}</div><p class="soft">{note}</p>'


def _needs(ladder: Ladder) -> str:
    if ladder.cost is None:
        return ""
    c = ladder.cost
    text = (
        f"<p>A unit costs {short(c.tokens_a_unit)} training tokens, trials and runs together; {c.units} were looked "
        f"at. {counted(c.more, 'unit')} would find differences of {c.finds:.1f} deviations, for "
        f"{short((c.more - c.units) * c.tokens_a_unit)} more tokens.</p>"
    )
    if ladder.needs:
        head = ["without a verdict", "seen, in deviations", "units", "tokens"]
        lines = [
            text_row(
                n.what, [f"{n.seen:.2f}", f"{n.units:g}" if math.isfinite(n.units) else "over 1000", _tokens(n.tokens)]
            )
            for n in ladder.needs
        ]
        text += html_table(head, lines, "The ladder")
        text += '<p class="soft">Units at which a difference as large as the one seen is found with 80 %: a guess.</p>'
    return f"<h3>What would decide the rest</h3>{text}"


def _factor(fitted: Estimate) -> str:
    """A fitted speed-up; of one beyond the picture no digits, which only the line's slope would have given."""
    if fitted.value > MOST:
        return f"more than {MOST:g}"
    return f"less than 1/{MOST:g}" if fitted.value < 1 / MOST else _text(fitted, 2)


def _tokens(value: float) -> str:
    return short(value) if math.isfinite(value) else "–"


def _text(estimate: Estimate, decimals: int, sign: str = "") -> str:
    """1.40 [1.20, 1.71]; a dash where there is nothing."""
    return _span(estimate, lambda value: decimal(value, decimals, sign))


def _span(estimate: Estimate, write: Callable[[float], str]) -> str:
    if math.isnan(estimate.value):
        return "–"
    ends = "" if math.isnan(estimate.low) else f" [{write(estimate.low)}, {write(estimate.high)}]"
    return f"{write(estimate.value)}{ends}"
