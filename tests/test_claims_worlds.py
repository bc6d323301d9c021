"""Every statement of every claim file, judged in worlds where the paper is right, wrong and at the margin, and where
one arm fails or never arrives.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import re

import claim_worlds as worlds
import pytest
import torch

import hf_optim
from hf_optim.claims import claim, exhibits, judge, rules
from hf_optim.claims import statement as statements
from hf_optim.study.plan import plan as planning

SEEDS = 7


@functools.cache
def loaded(name: str) -> claim.Claim:
    return claim.load(name)


@functools.cache
def expanded(name: str, size: str) -> planning.Plan:
    return planning.expand(loaded(name).settings[size].study, seeds=SEEDS)


def cases():
    """(name, index of the judged statement) of all that are judged, by kind."""
    by_tables = {True: [], False: []}
    for name in claim.names():
        for i, statement in enumerate(loaded(name).judged()):
            if statement.keys is not None:
                by_tables[statement.on_tables()].append(pytest.param(name, i, id=f"{name}-{i}-{statement.rule}"))
    return by_tables


CASES = cases()


def placed(name: str, i: int):
    """The statement's keys, the plan of the first size that has its tasks, and that size's metric names."""
    statement = loaded(name).judged()[i]
    for size, setting in loaded(name).settings.items():
        plan = expanded(name, size)
        if statements.concerns(statement.keys, {task["label"] for task in plan.tasks}):
            return statement.keys, plan, setting.metrics
    raise AssertionError(f"{name}: no size has the tasks of {statement.says!r}")


def test_a_figure_that_is_judged_is_one_that_its_optimizer_has() -> None:
    seen = 0
    for case in CASES[False]:
        name, i = case.values
        judged, plan, _ = placed(name, i)
        for keys in (judged, loaded(name).judged()[i].given or judged):
            if keys["rule"] == "bounded":
                spec = next(o["spec"] for o in plan.optimizers if o["label"] == keys["optimizer"])
                assert keys["key"] in hf_optim.create(spec, [torch.nn.Parameter(torch.ones(2))]).figures(), case.id
                seen += 1
    assert seen >= 4


@pytest.mark.parametrize(("name", "i"), CASES[False])
def test_a_verdict_is_right_in_every_world(name, i) -> None:
    keys, plan, renamed = placed(name, i)

    def verdict(world: str, failing=()) -> str:
        ruling = rules.rule(worlds.evidence(keys, plan, world, failing, renamed), keys)
        assert ruling.words
        return ruling.verdict

    assert verdict("right") == "holds"
    assert verdict("wrong") == "contradicted"
    assert verdict("margin") == "undecided"
    opposite = {**keys, "negated": not keys.get("negated", False)}
    for world, turned in (("right", "contradicted"), ("wrong", "holds"), ("margin", "undecided")):
        assert rules.rule(worlds.evidence(keys, plan, world, renamed=renamed), opposite).verdict == turned
    for failing, expected in _censored(keys, plan):
        assert verdict("right", failing) in expected, failing


def _censored(keys, plan):
    """Arms that fail in a world where the paper is right, and what the verdict then has to be."""
    tasks = worlds.tasks_of(keys, plan)
    rule, turned = keys["rule"], bool(keys.get("negated"))
    ours = [(task, keys.get("optimizer", "")) for task in tasks]
    if worlds.metric_of(keys, plan).startswith("memory."):  # a failed run has counted nothing
        return
    if rule in ("better", "better_on_average", "no_worse", "sooner", "throughout", "smoother", "steadier", "on_par"):
        theirs = [(task, worlds.baselines(keys)[0]) for task in tasks]
        # A baseline that never gets there is the strongest evidence, and no optimizer that fails is better than one.
        yield theirs, {"contradicted" if (rule == "on_par") != turned else "holds"}
        yield ours, {"holds" if turned else "contradicted"}
    elif rule == "ordered":
        yield [(task, keys["optimizers"][0]) for task in tasks], {"holds"}
        yield [(task, keys["optimizers"][-1]) for task in tasks], {"contradicted"}
    elif rule == "insensitive":
        label = (keys.get("optimizers") or [keys["optimizer"]])[-1]
        yield [(tasks[-1], label)], {"holds" if turned else "contradicted"}
    elif rule == "keeps":
        yield ours, {"holds" if turned else "contradicted"}
    elif rule == "degrades":
        yield ours, {"holds"}
    elif rule == "degrades_less":
        yield [(task, keys["baseline"]) for task in tasks], {"holds"}
        yield ours, {"contradicted"}
    elif rule == "at_most":
        yield [(task, keys["baseline"]) for task in tasks], {"holds", "undecided"}
    elif rule == "bounded":
        yield ours, {"holds"}  # what a run logged before it failed counts
    elif rule == "all":
        part = keys["of"][0]
        there = worlds.tasks_of(part, plan)
        if part["rule"] == "degrades":
            yield [(task, part["optimizer"]) for task in there], {"holds"}
        else:
            yield [(task, worlds.baselines(part)[0]) for task in there], {"holds", "contradicted"}
    else:
        assert rule == "diverges"


WITH_PREMISE = [
    pytest.param(*case.values, id=case.id)
    for case in (*CASES[False], *CASES[True])
    if loaded(case.values[0]).judged()[case.values[1]].given is not None
]


@pytest.mark.parametrize("world", ["right", "wrong", "margin"])
@pytest.mark.parametrize(("name", "i"), [p for p in WITH_PREMISE if not p.id.endswith("-inequality")])
def test_a_sentence_of_a_case_that_is_not_there_is_not_judged(name, i, world) -> None:
    """What it speaks of (its premise) is so, is not so, or is open; without it there would be another verdict."""
    statement = loaded(name).judged()[i]
    keys, plan, renamed = placed(name, i)
    seen = worlds.evidence(statement.given, plan, world, renamed=renamed)
    (judged,) = judge.judge(dataclasses.replace(loaded(name), statements=(statement,), readings={}), seen)
    alone = rules.rule(seen, keys)
    assert judged.ruling.verdict == (alone.verdict if world == "right" else "premise not met")
    assert alone.verdict != "premise not met"


def test_a_premise_that_nothing_was_logged_of_is_not_unmet() -> None:
    name = "tlr-figure1"
    i = next(i for i, statement in enumerate(loaded(name).judged()) if statement.given is not None)
    keys, plan, _ = placed(name, i)
    (judged,) = judge.judge(
        dataclasses.replace(loaded(name), statements=(loaded(name).judged()[i],)), worlds.evidence(keys, plan, "right")
    )
    assert judged.ruling.verdict == "not tested" and "logged lr_scale" in judged.ruling.words


def test_every_premise_of_the_papers_sentences() -> None:
    """By file and by what the sentence takes for granted; a reading names it."""
    named = {(case.values[0], loaded(case.values[0]).judged()[case.values[1]].given["rule"]) for case in WITH_PREMISE}
    assert named == {
        ("smaran-figure1", "inequality"), ("smaran-figure2", "all"), ("tlr-figure1", "bounded"),
        ("tlr-figure2", "degrades"), ("tlr-figure3", "no_worse"), ("tlr-figure4", "all"), ("amvt-limits", "degrades"),
    }  # fmt: skip
    for case in WITH_PREMISE:
        name, i = case.values
        assert re.search(r"where|at which", loaded(name).judged()[i].reading), case.id


@pytest.mark.parametrize(("others", "expected"), [(7.96, "contradicted"), (0.5, "premise not met")])
def test_a_sentence_of_methods_that_get_stuck_needs_methods_that_do(tmp_path, others, expected) -> None:
    name = "smaran-figure1"
    rows = [("beale", "smaran", 0.0), ("quadratic", "smaran", 0.0), ("rastrigin", "smaran", 7.96)]
    rows += [("rastrigin", label, 7.96) for label in ("sgd", "sgdm")] + [("rastrigin", "adam", others)]
    (tmp_path / "figure1").mkdir()
    lines = ["surface,optimizer,f", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "figure1" / "landscape.csv").write_text("\n".join(lines) + "\n")
    stuck = judge.of_tables(loaded(name), "small", tmp_path).judgements[-1]
    assert stuck.statement.says.startswith("Unlike other methods that get stuck") and stuck.ruling.verdict == expected


@pytest.mark.parametrize(("name", "i"), CASES[True])
def test_a_table_gives_the_right_verdict_in_every_world(name, i, tmp_path) -> None:
    keys = loaded(name).judged()[i].keys

    def verdict(world: str) -> str:
        rows = _table(keys, world)
        file = tmp_path / world / keys["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return exhibits.rule(tmp_path / world, keys).verdict

    assert verdict("right") == "holds" and verdict("wrong") == "contradicted"
    # At most is still so where the two are equal.
    assert verdict("margin") == ("holds" if keys["rule"] == "inequality" else "undecided")
    if keys["rule"] == "lowest":
        assert verdict("rival failed") == "holds" and verdict("failed") == "contradicted"
    assert exhibits.rule(tmp_path / "nowhere", keys).verdict == "not tested"


def _table(keys, world):
    kept = {key: str(text) for key, text in keys.get("where", {}).items()}
    other = {key: "another" for key in kept}  # rows that `where` leaves out say the opposite, and must not count
    if keys["rule"] == "inequality":
        right = keys["right"]
        limit = 2.0 if isinstance(right, str) else float(right)
        side = {right: limit} if isinstance(right, str) else {}
        off = {"right": -1.0, "wrong": 1.0, "margin": 0.0}[world] * max(1e-3, abs(limit) / 2)
        rows = [{**kept, "T": t, keys["left"]: limit - 1.0, **side} for t in (1, 2)]
        return [*rows, {**kept, "T": 4, keys["left"]: limit + off, **side}] + (
            [{**other, "T": 4, keys["left"]: limit + 99, **side}] if other else []
        )
    if keys["rule"] == "falls_as":
        shift = {"right": -0.3, "wrong": 0.3, "margin": 0.0}[world]
        drawn = worlds.noise("slope", seeds=5)
        return [
            {**kept, "seed": seed, "T": t, keys["column"]: t ** (keys["exponent"] + shift + drawn[seed])}
            for seed in range(5)
            for t in (16, 64, 128, 256, 512)
        ]
    assert keys["rule"] == "lowest"
    ours = {"right": 0.1, "wrong": 0.9, "margin": 0.5, "rival failed": 0.5, "failed": "nan"}[world]
    rival = "nan" if world == "rival failed" else 0.5
    surface = {key: text for key, text in kept.items() if key != "optimizer"}
    return [
        {**surface, "optimizer": keys["optimizer"], keys["column"]: ours},
        {**surface, "optimizer": "rival", keys["column"]: rival},
    ]
