"""SMARAN's and AMVT's claims and presets, value by value against the papers' own text."""

import re

import pytest
import torch

from hf_optim.claims import claim, settings, theorems
from hf_optim.experiment.task import load
from hf_optim.study.plan import plan

OURS = [name for name in claim.names() if name.startswith(("smaran", "amvt"))]
WORDS = {
    "half a point": 0.005, "one point": 0.01, "two points": 0.02, "lower by more than .02": 0.02,
    "ends within .1 of its lowest": 0.1,
}  # fmt: skip


def rows(table: str, **texts: str) -> dict[str, float | None]:
    """Figures of AMVT by optimizer."""
    kept = [r for r in claim.published() if r["paper"] == "AMVT" and r["table"] == table]
    return {r["optimizer"]: r["value"] for r in kept if all(r[key] == text for key, text in texts.items())}


def statements(name: str):
    return claim.load(name).statements


def test_a_margin_is_said_as_it_is_and_in_one_place() -> None:
    seen = 0
    for name in OURS:
        loaded = claim.load(name)
        assert not any(words in note for note in loaded.notes for words in WORDS), name
        for statement in loaded.statements:
            if statement.keys is not None and "margin" in statement.keys:
                said = [margin for words, margin in WORDS.items() if words in statement.reading]
                assert said == [statement.keys["margin"]], (name, statement.reading)
                seen += 1
    assert seen >= 6


def test_a_sentence_with_a_figure_says_what_of_it_is_judged() -> None:
    for name in OURS:
        for statement in statements(name):
            if statement.keys is not None and re.search(r"\d%|\d\.\d", statement.says):
                assert statement.reading, (name, statement.says)


def test_published_effects_are_the_least_difference_of_the_printed_figures() -> None:
    table = "Sec. 5.2 table"
    least = {}
    for data in ("MNIST", "CIFAR-10", "CIFAR-100", "ImageNet"):
        of = rows(table, dataset=data)
        least[data] = {other: of["AMVT"] - value for other, value in of.items() if other != "AMVT"}
    everywhere = min(gap for gaps in least.values() for gap in gaps.values())
    cifar = min(gap for data in ("CIFAR-10", "CIFAR-100") for gap in least[data].values())
    adam = min(gaps["Adam"] for gaps in least.values())
    effects = [s.effect for s in statements("amvt-section52") if s.effect is not None]
    assert [100 * e for e in effects] == pytest.approx([everywhere, cifar, least["ImageNet"]["Adam"], adam])
    gaps = rows("Sec. 5.3 text", dataset="CIFAR-10")
    assert 100 * statements("amvt-section53")[0].effect == pytest.approx(gaps["SGD+momentum"] - gaps["AMVT"])


def test_figures_of_running_text_are_published_rows_too() -> None:
    printed = {(r["table"], r["metric"]): r["value"] or r["printed"] for r in claim.published() if r["paper"] == "AMVT"}
    assert printed["Sec. 5.9 text", "faster convergence"] == 15
    assert printed["Sec. 5.4 text", "memory increase"] == "<2"
    assert printed["Sec. 5.4 text", "per-iteration overhead"] == "5-7"
    assert printed["Sec. 5.11 text", "more optimizer state memory"] == "~50"
    assert printed["Sec. 6 text", "faster convergence than Adam"] == 23
    assert printed["Sec. 6 text", "accuracy gain over Adam"] == "2-3"
    assert printed["Sec. 6 text", "training time reduction"] == "24-31"


def test_repetitions_that_are_printed_for_everything_are_told_of_every_study_of_amvt() -> None:
    """Section 2.4: 20 seeds for each optimizer, architecture and data set."""
    for name in OURS:
        loaded = claim.load(name)
        for size, setting in loaded.settings.items():
            if loaded.paper == "AMVT" and setting.study is not None:
                lines = settings.differences(loaded, size, plan.expand(setting.study))
                assert not any("prints no number of them" in line for line in lines), name
                assert loaded.printed == {"seeds": 20}, name


def test_no_note_counts_what_the_settings_say() -> None:
    for name in OURS:
        for note in claim.load(name).notes:
            assert not re.search(r"(one|two|three|four|five|six|\d) (epochs|steps|seeds) *(;|,|at|,? so)", note), note


def test_a_sentence_is_judged_in_its_own_sense() -> None:
    """What was quoted or judged amiss once."""
    texts = {name: [(s.says, s.keys, s.not_testable) for s in statements(name)] for name in OURS}
    captions = [(keys, why) for says, keys, why in texts["smaran-figure2"] if says.startswith("Generalization gaps on")]
    assert captions and all(keys is None and "caption" in why for keys, why in captions)
    trends = [keys for says, keys, _ in texts["smaran-figure3"] if "similar trend" in says]
    assert trends == [None]  # of more categories, and not of the lowest loss
    closer = [keys["metric"] for says, keys, _ in texts["smaran-figure3"] if "closer to zero" in says]
    assert closer == ["abs(loss_gap)", "abs(gap_as_run)"]
    dense = next(keys for says, keys, _ in texts["smaran-figure4"] if says.startswith("for DenseNet121"))
    assert all(task.startswith("DenseNet-121") for part in dense["of"] for task in part["tasks"])
    l4 = [keys for says, keys, _ in texts["smaran-figure4"] if says.startswith("The L4 meta optimizer")]
    assert [part["baseline"] for part in l4[0]["of"]] == ["Adam", "SGDM"] and l4[1]["rule"] == "on_par"
    (minimum,) = [keys for says, keys, _ in texts["smaran-figure1"] if "global minimum" in says]
    assert (minimum["rule"], minimum["right"]) == ("inequality", 0.99)
    memory = [keys["metric"] for says, keys, _ in texts["amvt-section54"] if says.startswith("Memory usage")]
    assert memory == ["memory.peak_card_bytes"]  # of a training; the sentence of the state is Section 5.11's
    (state,) = [s for s in statements("amvt-section54") if s.section.startswith("Section 5.11")]
    assert "comparable to Adam" in state.says and state.keys["metric"] == "memory.optimizer_state_bytes"
    (step,) = [keys for says, keys, _ in texts["amvt-section54"] if "per-iteration" in says]
    assert (step["metric"], step["factor"]) == ("time.step_ms_median", 1.07)
    notes = " ".join(claim.load("smaran-theorem4").notes)
    assert "Equation 61 to 62" in notes and "62 to 63" not in notes  # the sum of T terms is at least sqrt(T) of them


def test_amvt_is_quoted_with_its_hedges_and_judged_where_it_says() -> None:
    said = {name: [s.says for s in statements(name)] for name in OURS}
    assert any(says.startswith("This suggests that") for says in said["amvt-section53"])
    for name in ("amvt-section51", "amvt-section52"):
        (abstract,) = [s for s in statements(name) if s.section == "Abstract"]
        assert abstract.says.startswith("Experimental validation on benchmark datasets (CIFAR-10, ImageNet, MNIST)")
        assert not any("CIFAR-100" in task for task in abstract.keys.get("tasks", ()))
    assert abstract.keys["tasks"][:3] == ["CNN on MNIST", "ResNet-50 on CIFAR-10", "ResNet-50 on ImageNet"]
    bounds = [says for says in said["amvt-theorem1"] if says.endswith(("<= O(1/T)", "<= O(T)"))]
    assert len(bounds) == 3  # a property is quoted with its bound, as it is printed
    theorems_of = [s.says for s in statements("amvt-theorem1") if s.section.startswith("Theorem")]
    assert [says.endswith("<= D^2 / (2 alpha T) + alpha G^2 T / 2") for says in theorems_of] == [True, True]


def test_what_the_authors_of_amvt_would_miss() -> None:
    """What a note denied or a list left out once."""
    (adjusted,) = [s for s in statements("amvt-ablation") if s.says.startswith("the adaptive learning rate adjustment")]
    assert "Step 6" in adjusted.not_testable  # it has that name, and a formula
    assert "corrected momentum of Section 3.2" in " ".join(claim.load("amvt-ablation").notes)  # and not Algorithm 1's
    for name in ("amvt-section51", "amvt-section52", "amvt-section53"):  # of AdamW the decay is printed and no more
        assert claim.load(name).sources["AdamW"]["defaults"] == "ours"
        assert claim.load(name).sources["Adam"]["defaults"] == "printed"
    said = " ".join(s.says for s in statements("amvt-remarks"))
    assert all(words in said for words in ("Unified mathematical", "recommendations for", "This is optimal"))
    assert "neither data nor rates" in " ".join(claim.load("amvt-theorem1").notes)
    (sensitivity,) = [s for s in statements("amvt-section55") if s.section == "Section 6"]
    assert "this measure of it is ours" in sensitivity.reading


@pytest.mark.parametrize(("name", "printed"), [
    ("amvt-section51", {"data", "model", "batch size"}), ("amvt-section52", {"data", "model"}),
    ("amvt-section53", {"data"}), ("amvt-section55", set()), ("amvt-section58", set()), ("amvt-section59", {"data"}),
    ("amvt-ablation", {"data"}),
])  # fmt: skip
def test_what_a_section_of_amvt_does_not_name_is_ours(name, printed) -> None:
    loaded = claim.load(name)
    whole = settings.paper_plan(loaded)
    label = whole.tasks[-1 if name == "amvt-section52" else 0]["label"]
    told = {key: word for task, key, _, word, _ in settings.values(loaded, whole) if task == label}
    assert {key for key in ("data", "model", "batch size") if told[key] == "printed"} == printed


def test_presets_of_the_two_papers_say_what_is_printed() -> None:
    vision = load("vision")
    for data in ("cifar10", "cifar100", "tiny-imagenet"):
        preset = vision.preset(f"resnet50@smaran-{data}", "paper")
        values = preset.sources()
        assert [values[key].value for key in ("epochs", "batch_size", "data")] == [100, 128, data]
        assert values["schedule"].value == {"name": "constant"} and values["optimizer"].value["lr"] == 0.1
        printed = ("epochs", "batch_size", "schedule", "optimizer", "data", "model")
        assert {values[key].source for key in printed} == {"paper"}
        augment = {"crop": 4, "flip": True} if data == "tiny-imagenet" else None
        assert values["model"].value.get("augment") == augment and values["model"].value["small_stem"] is False
    amvt = [
        *(vision.preset(name, "paper") for name in ("mnist_cnn", "resnet50@amvt-cifar10", "resnet101@amvt-cifar100")),
        *(vision.preset(name, "paper") for name in ("resnet50@amvt-imagenet", "vit_b16")),
        load("lm").preset("lstm", "paper"),
    ]
    for preset in amvt:
        assert preset.batch_size.value in (32, 64, 128, 256, 512)
        # It prints grids and ranges, and two schedules: what is taken of them is nobody's but ours.
        assert {value.source for value in (preset.epochs, preset.batch_size, preset.schedule)} == {"ours"}
        assert preset.optimizer.value["lr"] == 1e-3 and 0.1 <= preset.model.value["dropout"] <= 0.3
    for model in ("logistic", "softmax"):
        preset = load("logistic").preset(model, "paper")
        assert {value.source for value in preset.sources().values()} == {"ours"}


def test_baselines_have_the_rates_that_smaran_prints() -> None:
    for name in ("smaran-figure2", "smaran-figure3"):
        spec = {o["label"]: o["spec"] for o in plan.expand(claim.load(name).settings["paper"].study).optimizers}
        assert (spec["SMARAN"]["lr"], spec["SMARAN"]["gamma"], spec["SMARAN"]["weight_decay"]) == (0.1, 0.9, 0.01)
        assert spec["SGD"] == {"name": "sgd", "lr": 0.1} and spec["SGDM"]["lr"] == 0.1
        assert [spec[each]["lr"] for each in ("Adam", "AdamW", "RAdam")] == [1e-3] * 3
        assert spec["AdamW"]["weight_decay"] == 0.01 and "weight_decay" not in spec["Adam"]


def test_the_function_that_is_not_convex_has_its_own_gradient() -> None:
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).requires_grad_(True)
    loss, gradient = theorems._not_convex(x, torch.Generator().manual_seed(0))
    noisy = x.grad
    expected = 1 + (x**2 / (1 + x**2)).sum()
    (exact,) = torch.autograd.grad(expected, x)
    assert loss == pytest.approx(expected.item()) and torch.allclose(gradient, exact)
    assert 0 < float((noisy - exact).abs().max()) < 0.5
    table = theorems.amvt_property2(steps=8, seeds=1)
    assert [row["T"] for row in table] == [1, 2, 4, 8]
    assert all(a["least"] >= b["least"] > 0 for a, b in zip(table, table[1:], strict=False))
