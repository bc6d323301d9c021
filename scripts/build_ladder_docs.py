"""Builds docs/ladder.md, its picture and what it keeps in docs/ladder/ from the folders of two studies.

    hf-optim study lm_ladder                              # once; it goes on where it stopped
    hf-optim study lm_batch
    python scripts/build_ladder_docs.py studies/lm_ladder --batch studies/lm_batch
    python scripts/build_ladder_docs.py                   # the page again, from the numbers that are kept

Every number of the page comes from the study's records; the words around them stand in ladder_page.md beside this.
"""

from __future__ import annotations

import argparse
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
KEPT, PICTURE, PAGE = DOCS / "ladder" / "ladder.json", DOCS / "ladder" / "ladder.svg", DOCS / "ladder.md"
BATCHES = DOCS / "ladder" / "batch.json"
ALT = "![Loss against tokens, and the speed-up over tuned AdamW against size](ladder/ladder.svg)"
WORDS = Path(__file__).with_name("ladder_page.md")


def kept(folder: Path, *, draw: bool = True) -> dict[str, Any]:
    """The numbers of the page, from a study's folder; draws the picture on the way."""
    from hf_optim.study.findings import analysis, ladder, naming, table, verdicts
    from hf_optim.study.folder import results as records
    from hf_optim.study.folder import stages
    from hf_optim.study.report.charts import style_of
    from hf_optim.study.report.ladder import known

    results = records.load(folder)
    built = ladder.build(results)
    assert built is not None, f"{folder} holds no ladder"
    plan, judgement = results.plan, results.standing.judgement
    tables = table.build(results)
    labels = [o["label"] for o in plan.optimizers]
    if draw and built.points:
        picture(built, style_of(labels))
    rungs = [r for r in plan.ladder["rungs"] if r["all"]]  # type: ignore[index]
    losses = {(p.optimizer, p.rung["task"]): p.loss for p in built.points}
    fitted = {(s.optimizer, s.rung["task"]): s for s in built.speeds}
    verdict = {} if judgement is None else {**judgement.scores}
    trials, judged, further = stages.planned(plan)
    data: Any = {
        "title": plan.title,
        "baseline": plan.baseline,
        "question": results.standing.register.digest,
        "units": judgement.units if judgement else 0,
        "looks": list(plan.looks),
        "trials": plan.tuning["trials"] if plan.tuning else 0,
        "planned": [trials, judged, further],
        "finished": results.standing.finished,
        "progress": verdicts.progress(results),
        "rungs": [
            {k: r[k] for k in ("task", "parameters", "multiple", "tokens", "steps", "batch_size", "all")} for r in rungs
        ],
        "budgets": [r["multiple"] for r in plan.ladder["rungs"] if r["size"] == rungs[0]["size"]],  # type: ignore[index]
        "counted": built.counted,
        "known": known(results),
        "optimizers": [],
        "trends": built.trends,
        "speed_trends": built.speed_trends,
        "rates": [
            {"rung": r.rung["task"], "optimizer": r.optimizer, "best": r.best, "at_edge": [r.at_edge, len(r.chosen)]}
            for r in built.rates
        ],
        "carried": [{"rung": c.rung["task"], "optimizer": c.optimizer, "costs": c.costs} for c in built.carried],
        "needs": built.needs,
        "cost": built.cost,
        "sentences": verdicts.sentences(results, tables),
    }
    for label in labels:
        c = verdict.get(label)
        keys, tried, _ = naming.searched(plan, label)
        data["optimizers"].append(
            {
                "label": label,
                "tuned": bool(keys),
                "named": naming.named(plan, label),
                "losses": [losses.get((label, r["task"])) for r in rungs],
                "fitted": [s.fitted if (s := fitted.get((label, r["task"]))) else None for r in rungs],
                "bounded": [s.bounded if (s := fitted.get((label, r["task"]))) else None for r in rungs],
                "verdict": c.verdict if c else "",
                "score": [c.difference.mean, c.difference.low, c.difference.high, c.adjusted] if c else None,
                "seconds": [
                    next((p.seconds for p in built.points if (p.optimizer, p.rung["task"]) == (label, r["task"])), None)
                    for r in rungs
                ],
            }
        )
    plain: dict[str, Any] = json.loads(analysis.to_json(data))  # what has no value is null
    return plain


def kept_batches(folder: Path) -> dict[str, Any]:
    """The numbers of the section on batch size, from the folder of lm_batch."""
    from hf_optim.study.findings import analysis, ladder, table, verdicts
    from hf_optim.study.folder import results as records

    results = records.load(folder)
    built, plan, judgement = ladder.build(results), results.plan, results.standing.judgement
    assert built is not None and built.batches, f"{folder} holds no batch sizes"
    tables, rung = table.build(results), plan.ladder["rungs"][0]  # type: ignore[index]
    data: Any = {
        "question": results.standing.register.digest,
        "units": judgement.units if judgement else 0,
        "trials": plan.tuning["trials"] if plan.tuning else 0,
        "parameters": rung["parameters"],
        "block": rung["tokens"] // (rung["steps"] * rung["batch_size"]),
        "batches": built.batches,
        "points": [
            {"optimizer": p.optimizer, **{k: p.rung[k] for k in ("multiple", "batch_size", "steps")}, "loss": p.loss}
            for p in built.points
        ],
        "sentences": [*verdicts.sentences(results, tables), *filter(None, [verdicts.progress(results)])],
    }
    plain: dict[str, Any] = json.loads(analysis.to_json(data))
    return plain


def picture(built: Any, styles: dict[str, str]) -> None:
    """The report's picture as a file of its own: the style sheet's light colours go along."""
    from hf_optim.study.report.ladder import slide

    css = (files("hf_optim.study.report") / "report.css").read_text(encoding="utf-8")
    colours = re.search(r":root \{(.*?)\}", css, re.DOTALL)
    assert colours is not None
    rules = [line for line in css.splitlines() if line.lstrip().startswith(("svg", ".k", ".d"))]
    style = f":root{{{colours[1]}}} svg{{background:#fdfdfc;font-family:system-ui,sans-serif}} {' '.join(rules)}"
    text = slide(built, styles).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(text.replace(">", f"><style>{style}</style>", 1) + "\n", encoding="utf-8")


def page(data: dict[str, Any], batches: dict[str, Any]) -> str:
    """docs/ladder.md."""
    fields = {
        "answer": answer(data) + "".join(f"\n\n{line}" for line in other(batches)),
        "picture": ALT if any(any(row["losses"]) for row in data["optimizers"]) else "",
        "made": provenance(data),
        "table": table_of(data),
        "rates": rates(data),
        "trend": trend(data),
        "open": opened(data),
        "batch": batch_section(batches),
        "sentences": "\n".join(f"- {line}" for line in data["sentences"]) or "There is no verdict yet.",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: fields[m[1]], WORDS.read_text(encoding="utf-8"))


def unlearnt(data: dict[str, Any], name: str, loss: float) -> str:
    """Who ended above a loss that takes no training, at each rung."""
    told = []
    for i, rung in enumerate(data["rungs"]):
        means = {row["label"]: row["losses"][i]["value"] for row in data["optimizers"] if row["losses"][i]}
        above = [label for label, mean in means.items() if mean >= loss]
        who = (
            "nobody"
            if not above
            else "everybody"
            if len(above) == len(means)
            else " and ".join(f"“{x}”" for x in above)
        )
        told.append(f"at {rung['task']}: {who}")
    return (
        f"**What was learnt:** {name} has a test loss of {loss:.3f} without any training. Above it ended, "
        f"{'; '.join(told)}. A verdict on them says who gets to the frequencies sooner, and nothing of language."
    )


def answer(data: dict[str, Any]) -> str:
    """What is decided, in a few sentences."""
    if not data["units"]:
        return f"**Nothing is decided yet.** {data['progress']}"
    groups: dict[str, list[str]] = {}
    for row in data["optimizers"]:
        if row["verdict"]:
            name = row["label"] if row["tuned"] else f"{row['label']} (untuned)"
            groups.setdefault(row["verdict"], []).append(name)
    said = [
        f"**{word.capitalize()}{'' if word == 'undecided' else ' than tuned AdamW'}:** {', '.join(groups[word])}."
        for word in ("better", "worse", "equivalent", "undecided", "no verdict")
        if word in groups
    ]
    said.append(
        f"Seen with {sizes_of(data)} parameters and {data['rungs'][0]['multiple']:g} tokens for each, no larger."
    )
    said += [unlearnt(data, name, loss) for name, loss in data.get("known", {}).items()]
    return "\n\n".join([*said, *crossings(data), *filter(None, [data["progress"]])])


def other(batches: dict[str, Any]) -> list[str]:
    """What the study of batch sizes says, up to its figures."""
    size = f"{batches['parameters']:,}"
    verdicts = [line.partition(";")[0] for line in batches["sentences"] if ": " in line and ";" in line]
    return [f"**Over [batch sizes](#batch-size), {size} parameters**, asked apart: {text}." for text in verdicts]


def sizes_of(data: dict[str, Any]) -> str:
    return "GPT-2 of " + " and ".join(f"{r['parameters']:,}" for r in data["rungs"])


def crossings(data: dict[str, Any]) -> list[str]:
    """A line for each optimizer whose loss lies apart from the baseline's, and not on the same side at every size."""
    base = next(row["losses"] for row in data["optimizers"] if row["label"] == data["baseline"])
    lines = []
    for row in data["optimizers"]:
        sides = [side(*pair) for pair in zip(row["losses"], base, strict=True)]
        if {"lower", "higher"} <= set(sides):
            places = ", ".join(f"{word} at {r['task']}" for word, r in zip(sides, data["rungs"], strict=True) if word)
            lines.append(f"**{row['label']} crosses:** its loss is {places} (intervals apart; each size singly).")
    return lines


def side(own: Any, other: Any) -> str:
    """Where an interval lies against another; nothing if they meet or one is unknown."""
    if not own or not other or None in (own["low"], own["high"], other["low"], other["high"]):
        return ""
    return "lower" if own["high"] < other["low"] else "higher" if own["low"] > other["high"] else ""


def provenance(data: dict[str, Any]) -> str:
    tokens = " and ".join(f"{r['tokens']:,}" for r in data["rungs"])
    looks = " and ".join(map(str, data["looks"]))
    return (
        f"{sizes_of(data)} parameters, trained on {tokens} tokens ({data['rungs'][0]['batch_size']} blocks a step, "
        f"{' and '.join(str(r['steps']) for r in data['rungs'])} steps). Each repetition has {data['trials']} trials "
        f"for every tuned optimizer at every size, and seeds of its own; looks after {looks} repetitions, of which "
        f"{data['units']} are in. FLOPs: {data['counted']}. Question `{data['question'][:12]}`."
    )


def table_of(data: dict[str, Any]) -> str:
    names = [r["task"] for r in data["rungs"]]
    head = ["optimizer", "verdict over both sizes", *(f"test loss, {n}" for n in names)]
    head += [f"times AdamW's tokens, {n}" for n in names]
    rows = []
    for row in data["optimizers"]:
        label = row["label"] if row["tuned"] else f"{row['label']} *"
        verdict = "baseline" if row["label"] == data["baseline"] else row["verdict"] or "–"
        rows.append([label, verdict, *map(interval, row["losses"]), *map(factor, row["bounded"])])
    return markdown(head, rows) + "\n\n\\* with the settings of the YAML, which nobody searched for it."


def rates(data: dict[str, Any]) -> str:
    best = [
        [r["optimizer"], r["rung"], interval(r["best"], ".2g"), "{} of {}".format(*r["at_edge"])] for r in data["rates"]
    ]
    costs = [[c["optimizer"], c["rung"], interval(c["costs"], "+.3f")] for c in data["carried"]]
    head = ["optimizer", "rung", "best rate (geometric mean)", "chosen at an end of the range"]
    parts = [markdown(head, best)] if best else []
    if costs:
        parts.append("Loss at the larger size with the rate of the smaller, less that with its own:")
        parts.append(markdown(["optimizer", "rung", "carrying costs, nats"], costs))
    return "\n\n".join(parts) or "Not known yet."


def trend(data: dict[str, Any]) -> str:
    rows = [[t["optimizer"], f"{t['multiple']:g}", interval(t["tenfold"], ".2f")] for t in data["speed_trends"]]
    if not rows:
        return "No optimizer has a factor within AdamW's budgets at every size, so there is no trend to tell."
    return markdown(["optimizer", "tokens a parameter", "factor per tenfold size"], rows)


def batch_section(data: dict[str, Any]) -> str:
    rows, budgets = data["batches"], sorted({p["multiple"] for p in data["points"]})
    made = (
        f"GPT-2 with {data['parameters']:,} parameters, {data['trials']} trials of the rate for each optimizer at "
        f"every batch size and budget, the whole repeated {data['units']} times. Question `{data['question'][:12]}`."
    )
    target = (
        f"Steps and tokens to a test loss of {rows[0]['target']:.3f}, the hardest that tuned AdamW reaches on average "
        f"at every batch size. A batch holds so many blocks of {data['block']} predicted tokens:"
    )
    head = ["optimizer", "batch", "steps", "tokens"]
    table = [
        [b["optimizer"], str(b["batch_size"]), *(interval(b[k], ",.0f") for k in ("steps", "tokens"))] for b in rows
    ]
    losses = {(p["optimizer"], p["batch_size"], p["multiple"]): p["loss"] for p in data["points"]}
    ends = [
        [label, str(batch), *(interval(losses.get((label, batch, m))) for m in budgets)]
        for label, batch in dict.fromkeys((b["optimizer"], b["batch_size"]) for b in rows)
    ]
    return "\n\n".join(
        [
            made,
            target,
            markdown(head, table),
            "The losses that these are read between:",
            markdown(["optimizer", "batch", *(f"test loss, {m:g} tokens a parameter" for m in budgets)], ends),
            "\n".join(f"- {line}" for line in data["sentences"]),
        ]
    )


def opened(data: dict[str, Any]) -> str:
    if not data["cost"]:
        return "No look is complete, so nothing can be said yet."
    c = data["cost"]
    text = (
        f"A repetition costs {c['tokens_a_unit']:,.0f} training tokens, trials and runs together. {c['more']} "
        f"repetitions find true differences of {c['finds']:.1f} deviations of a repetition with 80 %."
    )
    rows = [
        [n["what"], f"{n['seen']:.2f}", count(n["units"]), "–" if n["tokens"] == "never" else count(n["tokens"])]
        for n in data["needs"]
    ]
    if rows:
        text += " At the differences that were seen, which are guesses where nothing is decided:\n\n"
        text += markdown(["without a verdict", "seen, in deviations", "repetitions", "tokens"], rows)
    return text


def count(value: Any) -> str:
    return "more than 1,000" if value == "never" else f"{value:,.0f}" if value is not None else "–"


def interval(estimate: Any, shape: str = ".3f") -> str:
    if not estimate or estimate["value"] is None:
        return "–"
    ends = "" if estimate["low"] is None else f" [{estimate['low']:{shape}}, {estimate['high']:{shape}}]"
    return f"{estimate['value']:{shape}}{ends}"


def factor(estimate: Any) -> str:
    """As the report writes it."""
    from hf_optim.study.findings.speedups import text
    from hf_optim.study.statistics.speedup import SpeedUp

    return "–" if not estimate else text(SpeedUp(**{k: float("nan") if v is None else v for k, v in estimate.items()}))


def markdown(head: list[str], rows: list[list[str]]) -> str:
    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(r) + " |" for r in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="the study's folder (default: the numbers that are kept)")
    parser.add_argument("--batch", type=Path, help="the folder of lm_batch (default: the numbers that are kept)")
    given = parser.parse_args()
    KEPT.parent.mkdir(exist_ok=True)
    for folder, file, read in ((given.folder, KEPT, kept), (given.batch, BATCHES, kept_batches)):
        if folder is not None:
            file.write_text(json.dumps(read(folder), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(*(json.loads(file.read_text(encoding="utf-8")) for file in (KEPT, BATCHES))), encoding="utf-8")


if __name__ == "__main__":
    main()
