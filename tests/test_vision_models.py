"""Every image classifier: built and stepped narrow, as large as published, and read back from its checkpoint."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_optim import registry
from hf_optim.errors import UserError
from hf_optim.experiment.evaluation import evaluate_checkpoint
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import Data, load
from hf_optim.experiment.training import train
from hf_optim.hub import schedules
from hf_optim.tasks.data.augment import Augment
from hf_optim.tasks.models.images import FAMILIES, build
from hf_optim.tasks.presets.architectures import ARCHITECTURES
from hf_optim.tasks.presets.vision import ROWS, SETTINGS

TASK = load("vision")
ROOT = Path(__file__).parent.parent


def fake(shape: tuple[int, ...], classes: int) -> Data:
    """Data of which only the facts are asked for."""
    nothing = torch.utils.data.TensorDataset(torch.zeros(0))
    facts = {"shape": shape, "classes": tuple(f"c{number}" for number in range(classes))}
    return Data(nothing, nothing, nothing, "fake", "", "", facts)


def batch(count: int = 8, shape: tuple[int, ...] = (3, 32, 32), classes: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (count,), generator=generator)
    return {"pixel_values": torch.randn(count, *shape, generator=generator), "labels": labels}


def narrow(name: str, **values) -> nn.Module:
    preset = TASK.with_options(name, TASK.preset(name, "smoke"), values)
    torch.manual_seed(0)
    return TASK.model(name, preset, fake((3, 32, 32), 9))


@pytest.mark.parametrize("name", TASK.models)
def test_every_architecture_steps_narrow_and_comes_back_from_its_checkpoint(name, tmp_path) -> None:
    model, again = narrow(name), narrow(name)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model.accepts_loss_kwargs is False and "ForImageClassification" in type(model).__name__
    assert isinstance(model, TASK.model_class(name))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = model(**batch()).loss
    assert abs(loss.item() - math.log(9)) < 1  # a fresh classifier knows nothing
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    optimizer.step()
    model.eval()
    before = model(**batch())
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = TASK.model_class(name).from_pretrained(tmp_path).eval()
    for p in loaded.parameters():
        p.data = p.data.clone()  # what is read from a file begins at any address, on which MKL's last bit may depend
    assert torch.equal(loaded(**batch()).logits, before.logits)
    TASK.suits(loaded, fake((3, 32, 32), 9))


@pytest.mark.parametrize("name", TASK.models)
def test_the_published_architecture_has_the_published_size(name) -> None:
    each = ARCHITECTURES[name]
    with torch.device("meta"):
        model = build(name, each.family, each.config, each.shape, [str(i) for i in range(each.classes)])
    assert sum(p.numel() for p in model.parameters()) == each.parameters


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [("resnet18", 10, 11.2), ("resnet50", 10, 23.5), ("resnet101", 10, 42.5), ("vgg11", 100, 9.3)],
)
def test_small_stems_have_the_sizes_known_from_cifar(name, classes, millions) -> None:
    each = ARCHITECTURES[name]
    values = {**each.config, "small_stem": True}
    with torch.device("meta"):
        model = build(name, each.family, values, (3, 32, 32), [str(i) for i in range(classes)])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def representatives() -> list[str]:
    """One preset of every family in every setting that it is trained in."""
    chosen: dict[tuple[str, str], str] = {}
    for preset in TASK.sizes["paper"].presets:
        name, at, setting = preset.partition("@")
        if at:
            chosen.setdefault((ARCHITECTURES[name].family, setting), preset)
    return list(chosen.values())


@pytest.mark.parametrize("preset", representatives())
def test_paper_presets_build_for_their_data(preset) -> None:
    chosen = TASK.preset(preset, "paper")
    classes = {"mnist": 10, "cifar10": 10, "cifar100": 100, "tiny-imagenet": 200, "imagenet": 1000}[chosen.data.value]
    shape = {"mnist": (1, 28, 28), "tiny-imagenet": (3, 64, 64)}.get(chosen.data.value, (3, 32, 32))
    side = chosen.model.value.get("image_size")
    with torch.device("meta"):
        model = TASK.model(preset, chosen, fake((3, side, side) if side else shape, classes))
    assert model.config.num_labels == classes
    for key, value in chosen.sources().items():
        assert value.source in ("paper", "code", "ours"), key
    assert chosen.model.note, "where it is in the paper"


def test_presets_are_found_by_architecture_and_setting() -> None:
    assert set(ROWS) == set(TASK.models) and {s for row in ROWS.values() for s in row.settings} == set(SETTINGS)
    paper = TASK.sizes["paper"].presets
    for name, row in ROWS.items():
        assert TASK.preset(name, "paper") is paper[f"{name}@{row.settings[0]}"]
    for size in TASK.sizes.values():
        for preset in size.presets.values():
            registry.check_spec(preset.optimizer.value)
            schedules.check_schedule(preset.schedule.value)
            Augment.of(preset.model.value.get("augment", {}))
    agr = TASK.preset("resnet50@agr-cifar100", "paper")
    assert (agr.epochs.value, agr.batch_size.value, agr.model.value["small_stem"]) == (200, 128, True)
    assert TASK.preset("resnet50@smaran-cifar100", "paper").model.value["small_stem"] is False
    for name, size, message in (
        ("resnet50@agr", "paper", r"no 'resnet50@agr' at size 'paper' .*choose from resnet50, resnet50@smaran-cifar10"),
        ("resnet50", "small", "model 'resnet50' has no size 'small': choose from mlp, resnet"),
        ("alexnet", "small", "no model 'alexnet'"),
        ("mlp", "huge", "no size 'huge'"),
        ("mlp@agr-cifar100", "smoke", "choose from mlp$"),
    ):
        with pytest.raises(UserError, match=message):
            TASK.preset(name, size)


def test_timm_keeps_its_own_initialisation() -> None:
    import timm

    for name in ("densenet121", "tinyvit_5m", "vgg11"):
        values = {key: value for key, value in TASK.preset(name, "smoke").model.value.items() if key != "small_stem"}
        architecture = values.pop("architecture")
        torch.manual_seed(0)
        extra = {"mlp_ratio": 1 / 4096} if name == "vgg11" else {}
        plain = timm.create_model(architecture, num_classes=9, in_chans=3, **values, **extra)
        ours = dict(narrow(name).timm_model.named_parameters())
        same = [
            torch.equal(ours[key], value)
            for key, value in plain.named_parameters()
            if key in ours and ours[key].shape == value.shape
        ]
        assert all(same) and len(same) > 15


def test_the_stem_of_a_small_picture_keeps_its_size() -> None:
    from hf_optim.tasks.models.resnet import StemResNetForImageClassification

    for stem, side in ((True, 32), (False, 8)):
        model = narrow("resnet18", small_stem=stem)
        assert isinstance(model, StemResNetForImageClassification)
        assert model.resnet.embedder(batch()["pixel_values"]).shape[2:] == (side, side)
        dense = narrow("densenet121", small_stem=stem).timm_model.features
        assert dense.pool0(dense.conv0(batch()["pixel_values"])).shape[2:] == (side, side)


@pytest.mark.parametrize("name", ["mlp", "mnist_cnn", "resnet18", "vit_b16", "tinyvit_5m", "convnext_tiny"])
def test_label_smoothing_is_for_training_only(name) -> None:
    model = narrow(name, label_smoothing=0.2)
    given = batch()
    model.train()
    torch.manual_seed(3)
    output = model(**given)
    expected = nn.functional.cross_entropy(output.logits, given["labels"], label_smoothing=0.2)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    model.eval()
    output = model(**given)
    assert output.loss.item() == pytest.approx(
        nn.functional.cross_entropy(output.logits, given["labels"]).item(), rel=1e-6
    )


@pytest.mark.parametrize("name", ["mlp", "mnist_cnn", "resnet18", "wrn16_4", "swin_tiny", "vit_b16", "densenet121"])
def test_dropout_is_drawn_in_training_from_torchs_random_state(name, tmp_path) -> None:
    model = narrow(name, dropout=0.5)
    plain = narrow(name)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    given = batch()["pixel_values"]

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(given).logits

    model.train()
    assert torch.equal(logits(1), logits(1)) and not torch.equal(logits(1), logits(2))
    model.save_pretrained(tmp_path)
    model.eval()
    assert torch.equal(logits(1), logits(2))
    assert torch.equal(TASK.model_class(name).from_pretrained(tmp_path).eval()(given).logits, logits(1))


def test_values_that_do_not_fit_are_said_in_one_line() -> None:
    for name, shape, values, message in (
        ("convnext_tiny", (3, 32, 32), {"dropout": 0.1}, "has no dropout: give drop_path_rate"),
        ("mlp", (3, 32, 32), {"dropout": 1.5}, "dropout must be 0 or more and below 1, got 1.5"),
        ("mlp", (3, 32, 32), {"label_smoothing": "much"}, "label_smoothing must be"),
        ("mlp", (3, 32, 32), {"hidden_size": "wide"}, "cannot be built with hidden_size=wide.*expected int"),
        ("convnext_tiny", (3, 32, 32), {"hidden_sizes": [8, 8]}, r"cannot be built with hidden_sizes=\[8, 8\]"),
        ("wrn16_4", (3, 32, 32), {"depth": 12}, "depth must be 10, 16"),
        ("vgg11", (1, 28, 28), {}, "for images of 1 channel of 28x28"),
        ("densenet121", (1, 28, 28), {}, "for images of 1 channel of 28x28"),
        ("swin_tiny", (3, 4, 4), {}, "for images of 3 channels of 4x4"),
        ("mnist_cnn", (1, 3, 3), {}, "for images of"),
    ):
        preset = TASK.with_options(name, TASK.preset(name, "smoke"), values)
        with pytest.raises(UserError, match=message) as caught:
            TASK.model(name, preset, fake(shape, 9))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="unknown option 'depths'"):
        TASK.with_options("mlp", TASK.preset("mlp", "smoke"), {"depths": [1]})


@pytest.mark.parametrize("name", ["tinyvit_5m", "swin_tiny"])
def test_a_checkpoint_gives_the_numbers_of_its_record(name, tmp_path) -> None:
    options = {"augment": {"crop": 3, "flip": True}, "label_smoothing": 0.1}
    spec = RunSpec("vision", name, "smoke", {"name": "adamw"}, options=options)
    record = train(spec, tmp_path, progress=False, checkpoint_every=50)
    assert record["status"] == "ok", record["error"]
    metrics = evaluate_checkpoint("vision", name, "smoke", tmp_path / "checkpoint-4", options=options)
    best = "best_validation_accuracy"
    metrics.pop(best), record["metrics"].pop(best)
    assert metrics == record["metrics"]
    with pytest.raises(UserError, match=r"made for images of 3 channels of 32x32, digits has 1 channel"):
        evaluate_checkpoint("vision", name, "smoke", tmp_path / "checkpoint-4", data="digits")
    with pytest.raises(UserError, match="made for 9 classes .* has 98"):
        evaluate_checkpoint("vision", name, "smoke", tmp_path / "checkpoint-4", data="emoji-fine")


def test_the_documented_table_is_the_code() -> None:
    page = (ROOT / "docs" / "tasks" / "vision.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    for name, each in ARCHITECTURES.items():
        settings = ", ".join(f"`{setting}`" for setting in ROWS[name].settings)
        assert rows[name] == f"{each.title} | {each.parameters:,} | {each.source} | {settings}"
    for setting, each in SETTINGS.items():
        assert f"| `{setting}` | {each.about} |" in page
    assert all(f"`{name}`" in page for name in TASK.embedded)


def test_families_are_all_used() -> None:
    assert {each.family for each in ARCHITECTURES.values()} == set(FAMILIES)
