"""docs/claims.md from configs/claims: what the papers say, sentence by sentence, what judges it, what that would cost,
and what was found.

    python scripts/build_claims_docs.py             writes it
    python scripts/build_claims_docs.py --check     says whether it is what the files give
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_optim.claims import claim, cost, defaults, power, provenance
from hf_optim.claims.sources import WORDS
from hf_optim.claims.statement import Statement
from hf_optim.study.plan.plan import Plan, expand

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "claims.md"
DONE = ROOT / "docs" / "reproductions"
Judged = dict[str, list[dict[str, Any]]]  # judgements by size
HEAD = """# What the papers claim, and what was found

Every table, figure and theorem of the four papers and their headline sentences: the paper's own words, the rule that
judges them, what judging costs, and what was found, and at which size. Each has a file in `configs/claims`;
`hf-optim reproduce NAME` runs it and writes a page of verdicts, with published figures beside obtained ones.

**{tally}**

- **Size small** trains on data of the package, minutes to hours on a few cores. A verdict there speaks of the stand-in
  and of nothing larger. **Size paper** is the paper's setting, for a GPU; none of it was run here.
- *holds*, *contradicted*: decided, all comparisons of a sentence together at 5 %. *partly*: some parts of it decided in
  favour and none against. *undecided*: not enough runs. *premise not met*: the sentence speaks of a case that was not
  seen in the runs. *not testable*: the paper leaves out what it would take, or the sentence sums others up, explains,
  or is no result of a run.
- Where a sentence prints how large a difference is, its direction is judged, and no more unless it is read so; on a
  page at size paper the size stands beside the one obtained.
- *as printed*, *as run*: where a paper's published code is another algorithm than its text, both are run, and the
  published figures are taken as the code's. AGR's appendix says that its code's default setting reproduces its
  experiments; no other paper says so.
- *no noise, no interval*: no test was made. One deterministic run of each optimizer on a surface is compared as it is,
  and another start may turn it; a theorem "holds" if none of the computed cases broke it, which is no proof.
- *printed*, *code*, *ours* behind the settings of a training or of an optimizer, of all since the mark before it: the
  paper has them, its published code or the code that it takes over has them, or the paper leaves them open, and is
  silent or gives a range. "Its defaults" are the optimizer's own, and where those stand says the last table below.
- What a rule under *judged by* asks stands at the top of `hf_optim/claims/rules.py`, `courses.py` and `exhibits.py`;
  the one behind *given* is the premise, without which a sentence is not judged.
- A run that fails, or never arrives, counts as the worst there is.
- Costs are rough: GPU hours at 30 TFLOP/s and $3 an hour, core hours at 13 GFLOP/s. Tables that share runs pay once.
- "cannot" before the seeds: the published effects would need more of them than are planned, so that the stand-in is
  not run unless `--anyway` asks for it.

Made by `scripts/build_claims_docs.py`.
"""

DEFAULTS = """
## The optimizers' own defaults

What an optimizer runs with where a claim sets nothing: *printed* in its own paper, in the *code* of its authors (or in
torch's class, which ours follows), or *ours*.
"""


def page() -> str:
    """The page as Markdown."""
    claims = map(claim.load, claim.names())
    judged = [(loaded, {size: _judgements(loaded, size) for size in loaded.settings}) for loaded in claims]
    parts = [HEAD.replace("{tally}", _tally(judged))]
    for paper in claim.PAPERS:
        mine = [(loaded, by_size) for loaded, by_size in judged if loaded.paper == paper]
        parts += [f"\n## {paper}\n", *_shared([loaded for loaded, _ in mine])]
        parts += [_entry(loaded, by_size) for loaded, by_size in mine]
    return "\n".join([*parts, _defaults()]) + "\n"


def _shared(claims: Sequence[claim.Claim]) -> list[str]:
    """What is said of several claims of a paper, once, with their names."""
    texts = dict.fromkeys(text for loaded in claims for text in loaded.shared)
    of = {text: ", ".join(f"`{loaded.name}`" for loaded in claims if text in loaded.shared) for text in texts}
    lines = [f"- {text} ({names})" for text, names in of.items()]
    return ["\n".join(["Of several of its claims:", "", *lines, ""])] if lines else []


def _defaults() -> str:
    """The table of the optimizers' own defaults."""
    rows = [DEFAULTS, "| optimizer | read in | printed | code | ours |", "|---|---|---|---|---|"]
    for name, rule in defaults.rules().items():
        words = defaults.by_word(name)
        told = {word: [f"{key} {provenance.short(value)}" for key, value in has.items()] for word, has in words.items()}
        cells = [", ".join(told.get(word, [])) for word in WORDS]
        rows.append(f"| {' | '.join([name, rule['of'], *cells])} |")
    return "\n".join(rows)


def _tally(judged: Sequence[tuple[claim.Claim, Judged]]) -> str:
    """How many of the rows below have which verdict."""
    said = [_verdicts(statement, by_size) for loaded, by_size in judged for statement in loaded.judged()]
    counts = Counter(text.split("**")[1] if "**" in text else text for text in said)
    parts = [
        f"{counts[word]} {word}"
        for word in ("holds", "contradicted", "partly", "undecided", "premise not met")
        if counts[word]
    ]
    return (
        f"Of {len(said)} rows below, {len(said) - counts['not run'] - counts['–']} were judged, none at size paper: "
        f"{', '.join(parts)}. {counts['–']} are not testable as they are written, and {counts['not run']} were not run."
    )


def _entry(loaded: claim.Claim, by_size: Judged) -> str:
    plans = {size: expand(s.study) for size, s in loaded.settings.items() if s.study is not None}
    lines = [f"### {loaded.where}: {loaded.title}", "", _how(loaded, plans), ""]
    told = "; ".join(provenance.lines(loaded))
    trained = "; ".join(provenance.training(loaded))
    lines += [f"Training at size paper: {trained}.", ""] if trained else []
    lines += [f"Optimizers at size paper: {told}.", ""] if told else []
    lines += ["| the paper says | read as | judged by | found |", "|---|---|---|---|"]
    for statement in loaded.judged():
        cells = (
            f"“{statement.says}” ({statement.section})",
            ", ".join(text for text in (statement.variant, statement.reading) if text),
            _rule(statement),
            _verdicts(statement, by_size),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    own = [note for note in loaded.notes if note not in loaded.shared]
    lines += [""] if own else []
    return "\n".join([*lines, *(f"- {note}" for note in own), ""])


def _how(loaded: claim.Claim, plans: dict[str, Plan]) -> str:
    if not loaded.settings:
        return "Nothing to run."
    parts = [f"`hf-optim reproduce {loaded.name}`"]
    for size, setting in loaded.settings.items():
        link = f" ([found]({DONE.name}/{loaded.name}-{size}/reproduction.md))" if _file(loaded, size).is_file() else ""
        if setting.study is None:
            parts.append(f"judged without training{link}")
            continue
        plan = plans[size]
        machine = cost.GPU if size == "paper" else cost.CORE
        price = cost.of(plan.runs, machine)
        words = f"{size}: {len(plan.runs)} runs, {cost.duration(price.hours)} of one {machine.name}"
        words += f", ${price.hours * machine.dollars:,.0f}" if size == "paper" else ""
        outlook = power.outlooks(loaded, size, plan)
        needed = [each.needed for each in outlook if each.needed is not None]
        if needed:
            found = sum(seeds <= len(plan.seeds) for seeds in needed)
            words += f"; {len(plan.seeds)} seeds find {found or 'none'} of {len(needed)} published effects"
            words += f" (needed: {_range(needed)})"
        parts.append(words + link)
    return "; ".join(parts) + "."


def _range(needed: list[int]) -> str:
    low, high = min(needed), max(needed)
    top = f"more than {power.MOST_UNITS}" if high > power.MOST_UNITS else str(high)
    return top if low == high else f"{low} to {top}"


def _rule(statement: Statement) -> str:
    if statement.keys is None:
        return f"not testable: {statement.not_testable}"
    return _asked(statement.keys) + (f"; given {_asked(statement.given)}" if statement.given else "")


def _asked(keys: Mapping[str, Any]) -> str:
    negated = "not " if keys.get("negated") else ""
    parts = keys.get("of") or [keys]
    words = [f"{part['rule']} ({part['metric']})" if part.get("metric") else str(part["rule"]) for part in parts]
    return negated + ", ".join(dict.fromkeys(words))


def _file(loaded: claim.Claim, size: str) -> Path:
    return DONE / f"{loaded.name}-{size}" / "reproduction.json"


def _judgements(loaded: claim.Claim, size: str) -> list[dict[str, Any]]:
    file = _file(loaded, size)
    return list(json.loads(file.read_text(encoding="utf-8"))["judgements"]) if file.is_file() else []


def _verdicts(statement: Statement, by_size: Judged) -> str:
    """Each size's verdict on the statement; a verdict on other words is none."""
    if statement.keys is None:
        return "–"
    same = (statement.says, statement.reading, statement.variant, statement.rule)
    said = []
    for size, judgements in by_size.items():
        verdict = next(
            (j["verdict"] for j in judgements if (j["says"], j["reading"], j["variant"], j["rule"]) == same), None
        )
        if verdict not in (None, "not tested"):  # what a size has no tasks for was not run there
            certain = statement.noiseless() if verdict in ("holds", "contradicted") else ""
            told = f" at {size}" if not statement.on_tables() else ""
            said.append(f"**{verdict}**{told}{f' ({certain})' if certain else ''}")
    return ", ".join(said) or "not run"


def main() -> int | str:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    check, text = parser.parse_args().check, page()
    if check:
        return 0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text else "docs/claims.md is out of date"
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
