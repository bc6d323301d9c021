"""Where the settings of the optimizers at size paper stand: printed, in the code, or ours."""

from dataclasses import replace

import pytest
from study_fakes import make_study

from hf_optim.claims import claim, judge, provenance, show, sources
from hf_optim.errors import UserError
from hf_optim.study.folder import results as records
from hf_optim.study.plan import plan
from hf_optim.study.plan.source import parse

WITH_PAPER = [name for name, file in claim.names().items() if "\npaper_size:" in file.read_text(encoding="utf-8")]
FILE = """
name: mine
paper: TLR
where: Table 1
title: Mine
{sources}
claims:
  - {{says: better, section: Section 1, rule: better, optimizer: TLR, baseline: Adam, metric: test_loss}}
paper_size:
  study:
    name: mine-paper
    seeds: 1
    baseline: Adam
    tasks:
      - {{task: vision, model: mlp, size: paper, label: one}}
      - {{task: vision, model: resnet18, size: paper, label: two, hyper: {{Adam: {{lr: 1e-2, betas: [0.9, 0.98]}}}}}}
    optimizers:
      - {{name: adam, lr: 1e-3, label: Adam}}
      - {{name: tlr, gamma: 0.33, base: {{name: sgd, lr: 0.1}}, label: TLR}}
      - {{name: sps, label: SPS}}
"""


def read(said: str) -> claim.Claim:
    return claim.parse(parse(FILE.format(sources=f"sources: {said}" if said else ""), "mine.yaml"), [])


@pytest.mark.parametrize("name", WITH_PAPER)
def test_every_setting_of_a_shipped_claim_has_a_source(name) -> None:
    """That none is left over the loader sees to."""
    loaded = claim.load(name)
    study = loaded.settings["paper"].study
    assert study is not None
    for task, label, spec in plan.expand(study).cells():
        said = loaded.sources[label]
        for setting in sources.names(spec) or [sources.DEFAULTS]:
            word = said.get(setting)
            word = word.get(task["label"]) if isinstance(word, dict) else word
            assert word in sources.WORDS, (label, setting, task["label"])


def test_the_lines_tell_each_setting_once_with_its_source() -> None:
    told = "{all: {lr: code}, Adam: {lr: {one: printed, two: ours}, betas: code}, TLR: printed, SPS: ours}"
    assert provenance.lines(read(told)) == [
        "Adam: lr 0.001 on one (printed), lr 0.01 on two (ours), betas 0.9/0.98 on two (code)",
        "TLR: gamma 0.33, base.lr 0.1 (printed)",
        "SPS: its defaults (ours)",
    ]
    assert provenance.lines(read("{all: {lr: code}, TLR: {base.lr: ours, defaults: code}}")) == [
        "Adam: lr 0.001 on one and 0.01 on two (code), betas 0.9/0.98 on two",
        "TLR: gamma 0.33, base.lr 0.1 (ours), otherwise its defaults (code)",
    ]
    assert provenance.lines(read("")) == []


def test_what_another_study_sets_is_ours() -> None:
    loaded = read("{Adam: printed}")
    changed = FILE.format(sources="").replace("lr: 1e-3", "lr: 3e-3")
    study = claim.parse(parse(changed, "mine.yaml"), []).settings["paper"].study
    assert study is not None
    assert provenance.lines(loaded, plan.expand(study))[0] == (
        "Adam: lr 0.003 on one (ours), lr 0.01 on two, betas 0.9/0.98 on two (printed)"
    )


def test_the_page_at_size_paper_has_them(tmp_path) -> None:
    text = FILE.format(sources="sources: {all: {lr: printed}, SPS: ours}").replace("SPS", "smaran")
    text = text.replace("optimizer: TLR, baseline: Adam", "optimizer: smaran, baseline: adamw")
    loaded = claim.parse(parse(text, "mine.yaml"), [])
    results = records.load(make_study(tmp_path, ["adamw", "smaran"], seeds=2, value=lambda label, seed: 0.5))
    page = show.markdown(judge.of_study(loaded, "paper", results))
    told = page.partition("## Every value")[2].partition("The optimizers' settings:\n\n")[2]
    assert told.startswith("- all: lr 0.1 (ours)\n- smaran: otherwise its defaults (ours)\n")
    silent = show.markdown(judge.of_study(replace(loaded, sources={}), "paper", results))
    assert "The optimizers' settings" not in silent and "## Every value" in silent


def test_settings_that_all_share_are_told_once() -> None:
    lines = provenance.lines(claim.load("agr-table5"))
    assert lines[0] == "all: lr 0.001 (printed), weight_decay 0.0005, decay_all yes (code)" and len(lines) == 2


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("{Adan: ours}", r"no optimizer of paper_size has the label 'Adan'.*Adam"),
        ("{Adam: {eps: ours}}", "Adam sets no 'eps'"),
        ("{Adam: {lr: {three: ours}}}", "Adam has no lr on 'three'"),
        ("{Adam: {betas: {one: ours}}}", "Adam has no betas on 'one'"),
        ("{Adam: {lr: cited}}", "lr must be one of printed, code, ours, got 'cited'"),
        ("{Adam: [ours]}", "Adam must be one of"),
        ("{all: {eps: ours}}", "no optimizer of paper_size sets 'eps'"),
        ("{all: {lr: {three: ours}}}", "'three'"),
        ("ours", "sources must be a mapping"),
    ],
)
def test_a_wrong_source_is_said_with_its_line(said, wrong) -> None:
    with pytest.raises(UserError, match=rf"^mine\.yaml, line 6: .*{wrong}") as error:
        read(said)
    assert "\n" not in str(error.value)


def test_sources_need_a_study_at_size_paper() -> None:
    text = FILE.format(sources="sources: {Adam: ours}").replace("paper_size:", "small:")
    with pytest.raises(UserError, match="paper_size, which has no study"):
        claim.parse(parse(text, "mine.yaml"), [])
