"""What the claim files and the presets take from AGR and TLR: values, quotations and the rules that judge them."""

import json
import re
from pathlib import Path
from statistics import median

import claim_worlds as worlds
import numpy as np
import pytest

from hf_optim.claims import claim, defaults, power, rules, settings
from hf_optim.claims import statement as statements
from hf_optim.core.safe_text import markdown
from hf_optim.experiment.task import load
from hf_optim.study.plan import plan

ROOT = Path(__file__).parent.parent


def preset(task: str, model: str) -> dict[str, tuple[object, str]]:
    return {key: (value.value, value.source) for key, value in load(task).preset(model, "paper").sources().items()}


def statement(name: str, start: str, reading: str = ""):
    return next(s for s in claim.load(name).statements if s.says.startswith(start) and s.reading.startswith(reading))


def test_agrs_presets_are_its_text_and_its_code() -> None:
    ddpm = preset("ddpm", "unet")
    assert ddpm["epochs"] == (2000, "paper") and ddpm["batch_size"] == (128, "paper")
    assert ddpm["schedule"] == ({"name": "constant", "warmup": 200}, "code") and ddpm["max_grad_norm"] == (1.0, "code")
    model = ddpm["model"][0]
    assert (model["generated"], model["ddim_steps"], model["real"]) == (50_000, 100, "train")
    assert model["ema_decay"] == 0  # the code generates from the weights, not from their average
    albert = preset("albert", "albert")
    assert albert["epochs"] == (25, "paper") and albert["batch_size"] == (16, "paper")
    assert albert["optimizer"][0]["decay_all"] is True  # torch's AdamW over all parameters
    for name, source in (("resnet18", "code"), ("vgg11", "ours")):  # VGG's last layers are not the code's
        cifar = preset("vision", f"{name}@agr-cifar100")
        assert cifar["epochs"] == (200, "paper") and cifar["batch_size"] == (128, "paper")
        assert cifar["optimizer"][0] == {"name": "adamw_agr", "lr": 1e-3, "weight_decay": 5e-4, "decay_all": True}
        assert cifar["schedule"][0]["at"] == [0.3, 0.6, 0.8] and cifar["schedule"][0]["gamma"] == 0.2
        assert cifar["model"][0]["augment"] == {"crop": 4, "flip": True, "rotate": 15} and cifar["model"][1] == source
    for name, batch, source, lr in (
        ("convnext_tiny", 1024, "code", 4e-3),
        ("swin_tiny", 256, "paper", 2.5e-4),
        ("tinyvit_11m", 256, "paper", 2.5e-4),
    ):
        tiny = preset("vision", name)
        assert tiny["epochs"] == (300, "paper") and tiny["batch_size"] == (batch, source), name
        assert tiny["optimizer"][0]["lr"] == lr and tiny["data"] == ("tiny-imagenet", "paper")


def test_tlrs_presets_are_its_text_and_its_code() -> None:
    base = {"name": "sgd", "lr": 0.1, "momentum": 0.8, "weight_decay": 5e-4, "decay_all": True}
    cifar, imagenet = preset("vision", "wrn16_4"), preset("vision", "resnet50@tlr-imagenet")
    assert cifar["epochs"] == (80, "code") and imagenet["epochs"] == (80, "paper")  # printed for ImageNet alone
    assert cifar["batch_size"] == (128, "paper") and imagenet["batch_size"] == (96, "paper")
    assert cifar["optimizer"] == ({"name": "tlr", "base": base}, "code")
    assert cifar["model"][0]["dropout"] == 0.1 and cifar["model"][0]["augment"] == {"crop": 4, "flip": True}
    translation = preset("translation", "transformer")
    assert translation["model"][0]["heads"] == 8 and translation["model"][0]["layers"] == 3
    # The least certain of what is in it: the tokenizer is ours, Adam's values are the tutorial's.
    assert (translation["model"][1], translation["optimizer"][1]) == ("ours", "code")
    opened = settings.differences(claim.load("tlr-figure5"), "paper", settings.paper_plan(claim.load("tlr-figure5")))
    assert any("byte-level BPE" in line and line.endswith("is ours.") for line in opened)


@pytest.mark.parametrize("name", [name for name in claim.names() if name.startswith(("agr-", "tlr-"))])
def test_what_a_file_quotes_of_its_study_is_what_the_study_does(name) -> None:
    loaded = claim.load(name)
    whole = settings.paper_plan(loaded)
    if whole is None:
        return
    if "seeds" in loaded.printed:
        assert loaded.printed["seeds"] == len(whole.seeds)
    for _, key, value, source, _ in settings.values(loaded, whole):
        if isinstance(loaded.printed.get(key), int):
            assert (value, source) == (str(loaded.printed[key]), "printed"), key


@pytest.mark.parametrize("size", ["small", "paper"])
def test_tlrs_code_has_momentum_and_decay_on_mnist_too(size) -> None:
    study = plan.expand(claim.load("tlr-figure2").settings[size].study)
    as_run = {"momentum": 0.8, "weight_decay": 5e-4, "decay_all": True}
    for task, label, spec in study.cells():
        rate = float(task["label"].split()[-1])
        inner = spec if spec["name"] == "sgd" else spec["base"]
        assert inner == {"name": "sgd", "lr": rate, **(as_run if label.endswith("as run") else {})}
    train = {"small": 3500, "paper": 60_000 - preset("vision", "mlp")["validation"][0]}[size]
    steps = [train // batch if size == "small" else -(-train // batch) for batch in (128, 512)]  # small drops the rest
    words = {"small": f"{steps[0]} steps of 128 and {steps[1]} of 512", "paper": f"{steps[0]} and {steps[1]})"}[size]
    assert any(words in note for note in claim.load("tlr-figure2").notes)
    for start in ("typical SGD is very sensitive", "The case of alpha_0"):
        judged = [s for s in claim.load("tlr-figure2").judged() if s.says.startswith(start) and s.variant == "as run"]
        assert all(label.endswith("as run") for s in judged for label in s.labels()) and judged


@pytest.mark.parametrize(("name", "table", "last"), [
    ("agr-table3", "Table 3", "epoch 300"), ("agr-table4", "Table 4", "epoch 300"),
    ("agr-table5", "Table 5", "epoch 200"), ("agr-table6", "Table 6", ""),
])  # fmt: skip
def test_a_tables_effect_is_the_middle_of_its_final_gains(name, table, last) -> None:
    rows = json.loads((ROOT / "configs" / "claims" / "published.json").read_text(encoding="utf-8"))["rows"]
    final = {
        (row["model"], row["setting"], row["optimizer"]): row["value"]
        for row in rows
        if row["paper"] == "AGR" and row["table"] == table and row["setting"].startswith(last)
    }
    gains = [with_agr - final[m, s, "AdamW"] for (m, s, o), with_agr in final.items() if o == "AdamW(AGR)"]
    effect = next(s.effect for s in claim.load(name).statements if s.rule == "better" and s.effect)
    assert effect == pytest.approx(median(gains) / 100, abs=1e-6)


def test_sentences_are_quoted_whole_and_judged_by_all_that_they_say() -> None:
    abstract = statement("agr-remarks", "AGR can greatly improve").says
    assert abstract.endswith("including Adan and AdamW, by adding only three lines of code")
    half = statement("agr-table3", "the AGR method can improve", "better at the end by more than half a point")
    assert half.keys["by"] == 0.005
    both = ["train_loss", "test_accuracy"]
    for name, start, metrics in (
        ("agr-table3", "the AGR method can further decrease", ["train_loss", "validation_accuracy"]),
        ("agr-table4", "the AGR method can further decrease", ["train_loss", "validation_accuracy"]),
        ("agr-table5", "the training loss goes deeper", [*both, "validation_accuracy"]),
        ("agr-table5", "the training loss of VGG11", both),
    ):
        parts = statement(name, start).keys["of"]
        assert [part["metric"] for part in parts] == metrics, (name, start)
        # "through the entire training" is no sentence about its end.
        assert ("entire" in statement(name, start).says) == all(part["rule"] == "throughout" for part in parts)
    later = statement("agr-table3", "The test accuracy of Swin-Tiny").keys
    assert (later["rule"], later["start"]) == ("throughout", 0.5)
    assert statement("agr-table7", "the AGR method cannot improve").keys["negated"] is True
    # Figure 3 shows Swin-Tiny and no ConvNeXt.
    assert statement("agr-table3", "the AGR method can further").keys["of"][0]["tasks"][0] == "Swin-T"
    slower = [s for s in claim.load("agr-theorem42").statements if s.section == "Section 4"]
    assert {s.says.partition(",")[0] for s in slower} == {"Intuitively"}  # "when it is too large" is of both readings
    assert [s.keys["left"] for s in slower] == ["rise", "share"]
    both = {s.says for s in claim.load("agr-table2").statements if s.section == "Section 5"}
    assert both and both == {s.says for s in claim.load("agr-table1").statements if s.section == "Section 5"}
    for name in ("agr-table7", "agr-table8"):  # whose algorithm a sentence is judged by, where both are run
        assert all("algorithm of" in s.reading for s in claim.load(name).statements if s.keys is not None)
    # Suspended against throughout: the sentence speaks of no run that never has it.
    for name in ("agr-table7", "agr-table8"):
        suspended = statement(name, "the performance will become better")
        assert "first 0" not in suspended.labels() and len(suspended.labels()) == 2
    for each in claim.load("tlr-figure5").statements:
        if each.keys is not None:  # "a very low validation minimum"
            assert each.keys["metric"] == "validation_loss"
    # Which eta is the better one where, as in Table 1; not that TLR is better than each.
    etas = statement("tlr-table1", "different values of eta")
    assert etas.labels() == {"additive 1e-1", "additive 1e-2"}
    wins = [part["optimizer"] for part in etas.keys["of"]]
    assert wins == ["additive 1e-2", "additive 1e-1", "additive 1e-1"]
    # Table 1 and the figures behind "typical SGD is very sensitive" are means.
    means = [statement("tlr-table1", "Comparison between", "as in the table"), etas]
    parts = [part for each in means for part in each.keys["of"]]
    assert {(part["rule"], len(part["tasks"])) for part in parts} == {("better_on_average", 4)}
    assert statement("tlr-figure2", "typical SGD", "over the same: the mean").keys["rule"] == "better_on_average"


def test_agrs_second_inequality_fails_in_both_norms() -> None:
    g = np.array([1.0] + [1e-3] * 9)
    total = np.abs(g).sum()
    slope = np.diag(1 - 2 * np.abs(g) / total) + np.outer(g * np.abs(g), np.sign(g)) / total**2
    note = " ".join(claim.load("agr-theorem41").notes)
    assert f"{np.linalg.norm(slope, 2):.2f} where the identity, a Hessian, has 1 " in note
    assert f"norm {np.linalg.norm(slope):.1f} where it has {np.sqrt(10):.1f}" in note


def test_the_counts_above_the_page_are_those_of_its_rows() -> None:
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"\d+", next(s for s in page.splitlines() if "rows below" in s))]
    rows, judged, *verdicts, untestable, left = numbers
    assert sum(verdicts) == judged and judged + untestable + left == rows and "not tested" not in page


def test_a_run_that_failed_has_no_share_in_how_many_times_longer_the_others_took() -> None:
    judged = next(s for s in claim.load("tlr-figure2").judged() if s.rule == "at_most")
    study = plan.expand(claim.load("tlr-figure2").settings["small"].study)
    failing = [("1e-1", judged.keys["optimizer"])]
    assert "times" in rules.rule(worlds.evidence(judged.keys, study, "right"), judged.keys).words
    assert "nan" not in rules.rule(worlds.evidence(judged.keys, study, "right", failing), judged.keys).words


@pytest.mark.parametrize("size", ["small", "paper"])
def test_no_guard_of_ours_holds_tlr_back_where_the_paper_goes(size) -> None:
    """`bound` stops at 1e4 times the rate given; from the figure's least the best one is 1e8 times as large."""
    study = claim.load("tlr-figure2").settings[size].study
    assert study is not None
    specs = [spec for _, label, spec in plan.expand(study).cells() if label == "TLR"]
    assert len(specs) == 18 and all(spec["guards"] is False for spec in specs)
    assert min(spec["base"]["lr"] for spec in specs) == 1e-9


@pytest.mark.parametrize("name", claim.names())
def test_a_stored_page_has_the_words_of_the_claims_as_they_are(name) -> None:
    """Every verdict is on a statement that the claim file still makes, and every note and reason is the file's."""
    loaded = claim.load(name)
    for size in loaded.settings:
        folder = ROOT / "docs" / "reproductions" / f"{name}-{size}"
        if not folder.is_dir():
            continue
        judgements = json.loads((folder / "reproduction.json").read_text(encoding="utf-8"))["judgements"]
        told = [(j["says"], j["section"], j["reading"], j["variant"], j["rule"]) for j in judgements]
        assert told == [(s.says, s.section, s.reading, s.variant, s.rule) for s in loaded.judged()]
        page = (folder / "reproduction.md").read_text(encoding="utf-8")
        for statement, judged in zip(loaded.judged(), judgements, strict=True):
            assert statement.keys is not None or judged["words"] == statement.not_testable
            assert f"“{markdown(statement.says)}” ({markdown(statement.section)})" in page
            assert f"  - {markdown(judged['words'])}\n" in page
        assert all(f"\n- {markdown(note)}\n" in page for note in loaded.notes)


@pytest.mark.parametrize("name", claim.names())
def test_a_reading_that_a_stand_in_is_judged_by_names_no_data_of_the_paper(name) -> None:
    """The page at small would say of Tiny-ImageNet what was found on emoji."""
    loaded = claim.load(name)
    small = loaded.settings.get("small")
    if small is None or small.study is None:
        return
    tasks = {task["label"] for task in plan.expand(small.study).tasks}
    for each in loaded.statements:
        if each.keys is not None and statements.concerns(each.keys, tasks) and "elsewhere" not in each.reading:
            assert not re.search("CIFAR|ImageNet|MNIST", each.reading), each.reading


def test_a_note_of_several_files_stands_in_one_place() -> None:
    own, used = {}, set()
    for loaded in map(claim.load, claim.names()):
        used |= {(loaded.paper, text) for text in loaded.shared}
        assert loaded.notes[len(loaded.notes) - len(loaded.shared) :] == loaded.shared
        for note in loaded.notes[: len(loaded.notes) - len(loaded.shared)]:
            own.setdefault((loaded.paper, note), []).append(loaded.name)
    assert used == {(paper, text) for paper in claim.PAPERS for text in claim.shared_notes(paper).values()}
    assert not {note: names for note, names in own.items() if len(names) > 2}
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    for paper, text in used:
        assert page.split(f"## {paper}\n")[1].count(text) == 1 or page.count(text) == 1, text


def test_agrs_own_words_on_its_code_and_its_settings_are_told() -> None:
    """What a note had from the wrong section, or left out, once."""
    code = claim.shared_notes("AGR")["code"]
    assert "layers (Sections 3.1 and 5.1)" in code and "first moment (Section 3.3)" in code and "appendix" in code
    assert "corrects their bias" in claim.shared_notes("AGR")["restart"]  # what Algorithm 1 does not
    for name in ("agr-table3", "agr-table4"):  # whose recipes' values the appendix calls its own
        assert any('optimizers of the original implementation"' in note for note in claim.load(name).notes)
    assert "whether the figure shows a TinyViT" in statement("agr-table4", "the AGR method can further").reading
    assert {"Abstract", "Section 1", "Section 4", "Section 6"} == {
        s.section for s in claim.load("agr-remarks").statements
    }
    assert "no_prox" in defaults.rules()["adan_agr"]["printed"]  # the last line of Algorithm 1 divides


@pytest.mark.parametrize("name", [name for name in claim.names() if name.startswith(("smaran-", "tlr-"))])
def test_a_margin_or_a_target_that_is_ours_is_said_to_be(name) -> None:
    for each in claim.load(name).statements:
        if each.keys is not None and {"margin", "target"} & set(each.keys):
            assert "ours" in each.reading, each.reading


def test_a_quotation_is_not_cut_from_what_it_depends_on() -> None:
    """What was quoted without its condition or its hedge once."""
    assert statement("smaran-theorem3", "For constant loss, like in flat regions, SMARAN's learning rate")
    assert statement("smaran-figure2", "Where other optimizers overfit the data after a certain number of epochs")
    assert statement("tlr-figure1", "large ones correspond to an 'aggressive' descent")
    assert "several 'wrong' steps" in statement("tlr-figure2", "but not to the extent of other").says
    # "However, for DenseNet121": the sentence before it is of the other network.
    comparable = statement("smaran-figure4", "The L4 meta", "the second half").keys
    assert not any("DenseNet" in task for task in comparable["tasks"])
    # Robustness to rates and batches is no sentence on whether p and gamma matter; the final remark is.
    settings_matter = [s.section for s in claim.load("tlr-figure1").statements if s.rule == "insensitive"]
    assert settings_matter == ["Final Remark"] * 2
    # "in this setting at the cost of manually setting": of no stand-in, where nobody has.
    assert statement("tlr-figure3", "sgd-mstep provides").keys["tasks"] == ["WRN-16-4 on CIFAR-100"]
    # "manages to improve this performance" is of a loss and of an accuracy.
    first = [s.keys["metric"] for s in claim.load("tlr-figure2").statements if "manages to improve" in s.says]
    assert first == ["test_accuracy", "train_loss"]
    # "for both cases": neither is said to be better than its base.
    for base in ("SGD", "Adam"):
        judged = [s.keys for s in claim.load("tlr-figure5").statements if s.keys and s.keys["baseline"] == base]
        assert [keys["rule"] for keys in judged] == ["no_worse", "sooner"]
    multistep = claim.load("tlr-figure4").sources
    assert multistep["SGD multistep"]["lr"] == "ours" != multistep["SGD multistep"]["defaults"]


def test_what_differs_tells_of_augmentation_and_dropout() -> None:
    def told(name: str) -> str:
        loaded = claim.load(name)
        return " ".join(settings.differences(loaded, "small", plan.expand(loaded.settings["small"].study)))

    assert "augmentation crop 3 for none" in told("smaran-figure2")  # the paper normalises CIFAR, and no more
    assert "augmentation crop 3 for crop 4, flip yes; dropout none for 0.1" in told("tlr-figure3")
    assert "augmentation" not in told("tlr-figure2") and "dropout" not in told("tlr-figure2")


def test_an_outlook_is_of_what_the_rule_compares() -> None:
    """A rule of several parts has their noise and their comparisons, and one that compares nothing has none."""
    from hf_optim.study.statistics.paired import ALPHA, detectable

    def outlooks(name: str) -> dict[str, power.Outlook]:
        loaded = claim.load(name)
        study = plan.expand(loaded.settings["small"].study)
        return {each.statement.says[:20]: each for each in power.outlooks(loaded, "small", study)}

    later = outlooks("tlr-figure2")["but not to the exten"]
    assert later.visible == pytest.approx(detectable(later.seeds, ALPHA / 4) * 0.04)  # four comparisons of the loss
    figure2 = outlooks("smaran-figure2")
    assert figure2["Our method provides "].visible is None  # a bound on V
    assert figure2["SMARAN outperformed "].visible is None  # of a loss and of a gap, whose noises differ
    assert figure2["the SMARAN algorithm"].visible
