"""Where the settings at size paper stand, the optimizers', their defaults' and the tasks': printed, code, or ours."""

from dataclasses import replace

import pytest
from study_fakes import make_study

from hf_optim import registry
from hf_optim.claims import claim, defaults, judge, provenance, settings, show, sources
from hf_optim.errors import UserError
from hf_optim.experiment.task import REST, load
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
        for setting in [*sources.names(spec), sources.DEFAULTS]:
            word = said.get(setting)
            word = word.get(task["label"]) if isinstance(word, dict) else word
            assert word in sources.WORDS, (label, setting, task["label"])


@pytest.mark.parametrize("name", WITH_PAPER)
def test_every_value_of_a_shipped_training_has_a_source(name) -> None:
    """What the study gives its tasks has a word; what a preset leaves to us says why; a model is told in parts."""
    loaded = claim.load(name)
    study = loaded.settings["paper"].study
    assert study is not None
    said = loaded.sources.get(sources.STUDY, {})
    given = sources.of_tasks(study.value)
    assert set(given) <= set(said) <= {*given, *sources.CHOSEN}
    for setting, tasks in given.items():
        word = said[setting]
        assert all((word.get(task) if isinstance(word, dict) else word) in sources.WORDS for task in tasks), setting
    for task in plan.expand(study).tasks:
        preset = load(task["task"]).preset(task["model"], "paper")
        for key, value in preset.sources().items():
            if value.value is not None and key not in {*settings.LOOKING, *(task.get("overrides") or {})}:
                assert value.source != "ours" or value.note, f"{task['label']}: {key} is ours: say why"
        parts = preset.model.parts
        assert REST in parts and set(parts) - {REST} <= set(preset.model.value)


@pytest.mark.parametrize(("name", "printed"), [
    ("smaran-figure2", {"data", "model", "batch size", "epochs"}),
    ("smaran-figure3", {"data", "model", "batch size", "epochs"}),
    ("smaran-figure4", {"model", "batch size", "epochs"}),  # of CIFAR or Tiny-ImageNet, Figure 4 names none
    ("smaran-figure5", {"data", "model", "batch size", "epochs"}),
    ("smaran-figure7", {"data", "model", "batch size", "epochs"}),
    ("tlr-figure1", {"data", "model", "epochs"}),  # one of the four batch sizes of its grid
    ("tlr-figure2", {"data", "model", "batch size", "epochs"}), ("tlr-figure3", {"data", "model", "batch size"}),
    ("tlr-figure4", {"data", "model", "batch size", "epochs"}), ("tlr-figure5", {"data", "model"}),
    ("tlr-table1", {"data", "model", "batch size"}),
])  # fmt: skip
def test_what_the_texts_of_smaran_and_tlr_print_of_a_training(name, printed) -> None:
    loaded = claim.load(name)
    whole = settings.paper_plan(loaded)
    told = {}
    for task, key, _, word, _ in settings.values(loaded, whole, brief=True):
        if task in ("", whole.tasks[0]["label"]):
            told[key] = word
    of = {key for key in ("data", "model", "batch size", "epochs", "seeds") if told[key] == "printed"}
    assert of == printed and told["seeds"] == "ours"


def test_every_default_that_a_claim_runs_with_has_a_source() -> None:
    used: set[str] = set()
    for name in WITH_PAPER:
        whole = settings.paper_plan(claim.load(name))
        assert whole is not None
        used |= set(defaults.always_given(spec for _, _, spec in whole.cells()))
    assert used == set(defaults.rules())
    for name, rule in defaults.rules().items():
        told = [key for word in sources.WORDS for key in rule.get(word, ())]
        assert sorted(told) == sorted(registry.info(name).defaults), name
        assert set(rule) <= {"of", *sources.WORDS} and rule["of"], name


def test_the_lines_of_a_training_tell_the_study_s_values_too() -> None:
    given = "overrides: {batch_size: 64, eval_every: 5}, schedules: {Adam: {name: multistep, at: [0.5], gamma: 0.1}}"
    text = FILE.replace("label: two,", f"label: two, {given.replace('{', '{{').replace('}', '}}')},")

    def told(said: str) -> list[str]:
        return provenance.training(claim.parse(parse(text.format(sources=f"sources: {said}" if said else ""), "m"), []))

    shared, one, two = told("{study: {batch_size: printed, schedules: {two: code}}}")
    assert shared.startswith("all: seeds 1, ") and "held-out train samples 5000" in shared
    assert one == "one: epochs 20, data mnist, model mlp (printed), batch size 128 (ours), schedule constant (code)"
    assert "batch size 64" in two.partition("(printed)")[0] and "eval" not in two
    assert two.endswith("schedule of Adam: multistep (at [0.5], gamma 0.1) (code)")
    assert told("")[2].endswith("batch size 64, schedule of Adam: multistep (at [0.5], gamma 0.1) (ours)")


def test_a_claim_may_say_of_a_preset_s_network_and_data_that_its_own_section_does_not_name_them() -> None:
    def told(said: str) -> list[str]:
        return provenance.training(read(f"{{study: {said}}}"))

    ours = told("{data: ours, model: {one: code}, batch_size: {one: printed}}")
    assert ours[1] == "one: epochs 20 (printed), data mnist (ours), model mlp, schedule constant (code)"
    assert "batch size 128 (printed)" in ours[0]
    # what is not said, the preset has
    assert ours[2] == "two: epochs 100, model resnet18, schedule constant (printed), data cifar10 (ours)"
    assert told("{model: printed}")[1] == told("{data: printed}")[1] == provenance.training(read(""))[1]
    whole = settings.paper_plan(read("{study: {data: ours, model: ours}}"))
    assert whole is not None
    assert "one: data mnist is ours." in settings.differences(read("{study: {data: ours}}"), "paper", whole)
    with pytest.raises(UserError, match="study has no model on 'three'"):
        read("{study: {model: {three: ours}}}")


def test_a_small_study_says_what_of_the_regularising_it_goes_without() -> None:
    for name, told in (
        ("amvt-section53", "augmentation none for crop 4, flip yes, jitter 0.2; dropout none for 0.1"),
        ("smaran-figure3", "augmentation crop 3 for crop 4, flip yes"),
    ):
        loaded = claim.load(name)
        study = loaded.settings["small"].study
        assert study is not None
        assert any(told in line for line in settings.differences(loaded, "small", plan.expand(study))), name


def test_a_task_s_value_that_another_study_sets_is_ours() -> None:
    text = FILE.replace("label: one}", "label: one, overrides: {{epochs: EPOCHS}}}")
    loaded = claim.parse(parse(text.format(sources="sources: {study: {epochs: code}}").replace("EPOCHS", "9"), "m"), [])
    other = claim.parse(parse(text.format(sources="").replace("EPOCHS", "3"), "m"), []).settings["paper"].study
    whole = settings.paper_plan(loaded)
    assert whole is not None and other is not None
    assert ("one", "epochs", "9", "code", "set by the study") in settings.values(loaded, whole)
    assert ("one", "epochs", "3", "ours", "set by the study") in settings.values(loaded, plan.expand(other))
    assert "one: epochs 9 is from the code: set by the study." in settings.differences(loaded, "paper", whole)


def test_the_lines_tell_each_setting_once_with_its_source() -> None:
    told = "{all: {lr: code}, Adam: {lr: {one: printed, two: ours}, betas: code}, TLR: printed, SPS: ours}"
    assert provenance.lines(read(told)) == [
        "Adam: lr 0.001 on one (printed), lr 0.01 on two (ours), betas 0.9/0.98 on two (code)",
        "TLR: gamma 0.33, base.lr 0.1, otherwise its defaults (printed)",
        "SPS: its defaults (ours)",
    ]
    assert provenance.lines(read("{all: {lr: code}, TLR: {base.lr: ours, defaults: code}}")) == [
        "Adam: lr 0.001 on one and 0.01 on two (code), betas 0.9/0.98 on two",
        "TLR: gamma 0.33, base.lr 0.1 (ours), otherwise its defaults (code)",
    ]
    assert provenance.lines(read("{TLR: {cap: printed, defaults: ours}}"))[1] == (
        "TLR: gamma 0.33, base.lr 0.1, cap 100 (printed), otherwise its defaults (ours)"
    )
    assert provenance.lines(read("")) == []


def test_what_another_study_sets_is_ours() -> None:
    loaded = read("{Adam: printed}")
    changed = FILE.format(sources="").replace("lr: 1e-3", "lr: 3e-3")
    study = claim.parse(parse(changed, "mine.yaml"), []).settings["paper"].study
    assert study is not None
    assert provenance.lines(loaded, plan.expand(study))[0] == (
        "Adam: lr 0.003 on one (ours), lr 0.01 on two, betas 0.9/0.98 on two, otherwise its defaults (printed)"
    )


def test_the_page_at_size_paper_has_them(tmp_path) -> None:
    text = FILE.format(sources="sources: {all: {lr: printed}, SPS: ours}").replace("SPS", "smaran")
    text = text.replace("optimizer: TLR, baseline: Adam", "optimizer: smaran, baseline: adamw")
    loaded = claim.parse(parse(text, "mine.yaml"), [])
    results = records.load(make_study(tmp_path, ["adamw", "smaran"], seeds=2, value=lambda label, seed: 0.5))
    page = show.markdown(judge.of_study(loaded, "paper", results))
    told = page.partition("## Every value")[2].partition("The optimizers' settings:\n\n")[2]
    assert told.startswith("- all: lr 0.1 (ours)\n- smaran: otherwise its defaults (ours)\n")
    assert "\n- smaran: gamma 0.9, weight_decay 0.01, eps 1e-08, norm_scope global (printed)\n" in told
    assert "\n|  | seeds | 2 | ours |  |\n" in page
    silent = show.markdown(judge.of_study(replace(loaded, sources={}), "paper", results))
    assert "The optimizers' settings" not in silent and "## Every value" in silent


def test_settings_that_all_share_are_told_once() -> None:
    lines = provenance.lines(claim.load("agr-table5"))
    assert lines[0] == "all: lr 0.001, otherwise their defaults (printed), weight_decay 0.0005, decay_all yes (code)"
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("{Adan: ours}", r"no optimizer of paper_size has the label 'Adan'.*Adam"),
        ("{Adam: {lr: {three: ours}}}", "Adam has no lr on 'three'"),
        ("{Adam: {betas: {one: ours}}}", "Adam has no betas on 'one'"),
        ("{Adam: {lr: cited}}", "lr must be printed, code or ours, got the text 'cited'"),
        ("{Adam: [ours]}", "Adam must be printed, code or ours"),
        ("{all: {eps: ours}}", "no optimizer of paper_size sets 'eps'"),
        ("{all: {lr: {three: ours}}}", "'three'"),
        ("ours", "sources must be a mapping"),
        ("{Adam: {epochs: ours}}", "Adam sets no 'epochs'"),
        ("{TLR: {cap: cited}}", "cap must be printed"),
        ("{study: {epochs: ours}}", "study sets no 'epochs'"),
        ("{study: {defaults: ours}}", "study sets no 'defaults'"),
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
