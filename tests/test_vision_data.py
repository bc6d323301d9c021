"""Augmentation, images that are decoded when they are asked for, and sets of the Hub."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import load
from hf_optim.experiment.training import train
from hf_optim.tasks.data import hub
from hf_optim.tasks.data.augment import DRAWS, Augment, box, draws
from hf_optim.tasks.data.image_sets import CENTRE, HubRows, Images
from hf_optim.tasks.data.images import assemble, read

TASK = load("vision")


def encoded(shade: int, size: tuple[int, int] = (20, 12), mode: str = "RGB", kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(shade).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def uniform(count: int = 64) -> torch.Tensor:
    torch.manual_seed(5)
    return draws(count, torch.initial_seed(), 0)


def pixels(count: int = 64, channels: int = 3, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.randint(1, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def test_a_crop_is_a_window_of_the_padded_picture_and_every_window_occurs() -> None:
    given, numbers = pixels(500), draws(500, torch.initial_seed(), 0)
    cropped = Augment.of({"crop": 1})(given, numbers)
    assert cropped.dtype == torch.uint8 and cropped.shape == given.shape
    padded = torch.nn.functional.pad(given, (1,) * 4)
    seen = set()
    for i in range(len(given)):
        places = [(y, x) for y in range(3) for x in range(3)]
        windows = [(y, x) for y, x in places if torch.equal(padded[i, :, y : y + 9, x : x + 7], cropped[i])]
        assert len(windows) == 1
        seen.add(windows[0])
    assert len(seen) == 9


def test_flips_mirror_about_half_of_the_pictures() -> None:
    given = pixels(400)
    flipped = Augment.of({"flip": True})(given, uniform(400))
    mirrored = (flipped == given.flip(3)).flatten(1).all(1)
    assert ((flipped == given).flatten(1).all(1) ^ mirrored).all() and 0.4 < mirrored.float().mean() < 0.6


def test_a_turn_of_a_right_angle_is_exact_and_small_ones_stay_small() -> None:
    square = pixels(2, 3, 8, 8)
    numbers = torch.zeros(2, DRAWS)
    numbers[0, 3], numbers[1, 3] = 1.0, 0.5  # + 90 degrees, 0 degrees
    turned = Augment.of({"rotate": 90})(square, numbers)
    assert torch.equal(turned[1], square[1].float())
    assert any(torch.equal(turned[0], torch.rot90(square[0].float(), k, (1, 2))) for k in (1, 3))
    wide = torch.zeros(1, 1, 21, 41)
    wide[0, 0, 10, 20] = 255  # the centre stays where it is, whatever the proportions
    assert Augment.of({"rotate": 40})(wide, torch.rand(1, DRAWS))[0, 0, 10, 20] == 255
    bar = torch.zeros(1, 1, 41, 81)
    bar[0, 0, 20, 20:61] = 255  # 41 long; turned by 45 degrees it spans 29 rows
    numbers = torch.zeros(1, DRAWS)
    numbers[0, 3] = 1.0
    rows = Augment.of({"rotate": 45})(bar, numbers)[0, 0].sum(1).nonzero().flatten()
    assert 27 <= rows.max() - rows.min() <= 31


def test_jitter_changes_brightness_contrast_and_saturation_as_much_as_asked() -> None:
    given = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    given[0, 0, 0, 0] = 120
    middle = torch.full((1, DRAWS), 0.5)
    assert torch.allclose(Augment.of({"jitter": 0.5})(given, middle), given.float(), atol=1e-4)
    for index, expected in ((4, given.float() * 1.5), (5, None), (6, None)):
        numbers = middle.clone()
        numbers[0, index] = 1.0
        jittered = Augment.of({"jitter": 0.5})(given, numbers)
        if expected is not None:
            assert torch.allclose(jittered, expected, atol=1e-3)
        else:  # both stretch differences by half: to the mean luminance, and to each pixel's own
            luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            grey = (given * luma).sum(1, keepdim=True)
            centre = grey.mean() if index == 5 else grey
            assert torch.allclose(jittered, (given - centre) * 1.5 + centre, atol=1e-3)
    grey = pixels(8, 1)
    assert torch.allclose(Augment.of({"jitter": 0.4})(grey, torch.full((8, DRAWS), 0.5)), grey.float(), atol=1e-3)


def test_resized_crops_lie_inside_and_have_the_asked_area() -> None:
    shares = []
    for numbers in uniform(300):
        left, top, right, bottom = box((0.2, 0.6), numbers, 400, 300)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / (400 * 300))
    assert 0.19 < min(shares) < 0.25 and 0.55 < max(shares) < 0.61


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("crop", "expected a mapping"),
        ({"zoom": 2}, "unknown key 'zoom'; valid: crop, flip"),
        ({"crop": -1}, "crop must be a whole number of pixels"),
        ({"crop": True}, "crop must be a whole number"),
        ({"flip": 1}, "flip must be true or false"),
        ({"rotate": 400}, "rotate must be degrees"),
        ({"jitter": float("nan")}, "jitter must be a share"),
        ({"resized_crop": [0.5]}, "two shares of the area"),
        ({"resized_crop": [0.5, 1], "crop": 2}, "exclude each other"),
    ],
)
def test_wrong_augmentations_are_said_in_one_line(values, message) -> None:
    with pytest.raises(UserError, match=message):
        Augment.of(values)


def test_what_happens_to_a_sample_depends_on_seed_epoch_and_position_alone() -> None:
    preset = TASK.with_options("mlp", TASK.preset("mlp", "smoke"), {"augment": {"crop": 2, "flip": True}})
    data = TASK.data(preset, None)
    assert data.train_evaluated is not None and torch.equal(data.train.pixels, data.train_evaluated.pixels)

    def batch(indices, seed=1, epoch=0):
        torch.manual_seed(seed)
        data.train.epoch = epoch
        return data.train.__getitems__(indices)["pixel_values"]

    whole = batch(range(64))
    torch.rand(100)  # an optimizer's own random numbers change nothing
    assert torch.equal(data.train.__getitems__(range(64))["pixel_values"], whole)
    assert torch.equal(batch(range(0, 64, 2)), whole[::2]) and torch.equal(batch([5]), whole[5:6])
    assert not torch.equal(batch(range(64), epoch=1), whole) and not torch.equal(batch(range(64), seed=2), whole)
    state = torch.get_rng_state()
    data.train.__getitems__(range(8))
    assert torch.equal(torch.get_rng_state(), state)
    plain = TASK.data(TASK.preset("mlp", "smoke"), None)
    assert plain.train_evaluated is None  # and the set is shared between runs, so it must not have been changed
    for split in ("train", "validation"):
        before = getattr(plain, split).__getitems__(range(9))["pixel_values"]
        after = (data.train_evaluated if split == "train" else data.validation).__getitems__(range(9))["pixel_values"]
        assert torch.equal(before, after)
    black = (0 - data.train.mean) / data.train.std
    assert torch.isclose(whole.min(), black).all()  # padded before the normalisation


def spec(**values) -> RunSpec:
    given = {"task": "vision", "model": "mlp", "size": "smoke", "optimizer": {"name": "adamw"}, **values}
    return RunSpec.from_dict({**given, "options": {"augment": {"crop": 2, "flip": True, "jitter": 0.1}}})


def pictures(monkeypatch, run) -> list[torch.Tensor]:
    """The training pictures of a run, batch by batch."""
    seen: list[torch.Tensor] = []
    original = Images.__getitems__

    def recording(self, indices):
        batch = original(self, indices)
        if self.augment is not None:
            seen.append(batch["pixel_values"])
        return batch

    monkeypatch.setattr(Images, "__getitems__", recording)
    record = run()
    monkeypatch.undo()
    assert record["status"] == "ok", record["error"]
    return seen


def test_runs_with_augmentation_are_paired_and_resume_bit_identically(monkeypatch, tmp_path) -> None:
    records = {}

    def run(name, folder, **values):
        records[folder] = train(spec(optimizer={"name": name}), tmp_path / folder, progress=False, **values)
        return records[folder]

    adamw = pictures(monkeypatch, lambda: run("adamw", "one", checkpoint_every=5))
    smaran = pictures(monkeypatch, lambda: run("smaran", "two"))
    assert len(adamw) == 16 and all(torch.equal(a, b) for a, b in zip(adamw, smaran, strict=True))
    assert not torch.equal(torch.cat(adamw[:8]).sort(0).values, torch.cat(adamw[8:]).sort(0).values)
    import shutil

    whole = json.loads((tmp_path / "one" / "record.json").read_text())
    for last in ("checkpoint-15", "checkpoint-16"):
        shutil.rmtree(tmp_path / "one" / last)
    again = pictures(monkeypatch, lambda: run("adamw", "one", checkpoint_every=5, resume=True))
    assert torch.equal(again[-1], adamw[-1]) and len(again) == 6
    assert records["one"]["metrics"] == whole["metrics"]


def photographs(folder, count=24) -> None:
    for i in range(count):
        place = folder / f"kind{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(encoded(i, (20 + i, 12 + i % 5), "L" if i == 3 else "RGB"))


def test_images_of_any_size_are_decoded_when_asked_for(tmp_path) -> None:
    photographs(tmp_path)
    with pytest.raises(UserError, match="differ in size: .* or let option image_size do it"):
        read(tmp_path)
    splits = read(tmp_path, size=8)
    assert splits.shape == (3, 8, 8) and splits.classes == ("kind0", "kind1")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 2, 2]
    assert splits.fingerprint == read(tmp_path, size=8).fingerprint
    batch = splits.train.__getitems__([3, 0])
    assert batch["pixel_values"].shape == (2, 3, 8, 8) and batch["labels"].dtype == torch.int64
    place, data, label = splits.train.rows[int(splits.train.positions[3])]
    with Image.open(data) as opened:
        picture = opened.convert("RGB")
    side = min(picture.size) * CENTRE
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    middle = picture.resize((8, 8), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    expected = (torch.tensor(np.asarray(middle)).permute(2, 0, 1) / 255 - splits.train.mean.view(3, 1, 1)) / (
        splits.train.std.view(3, 1, 1)
    )
    assert torch.allclose(batch["pixel_values"][0], expected, atol=1e-5)
    changed = splits.train.augmented(Augment.of({"resized_crop": [0.1, 1], "flip": True}))
    torch.manual_seed(0)
    first = changed.__getitems__([0, 1])["pixel_values"]
    assert torch.equal(first, changed.__getitems__([0, 1])["pixel_values"])
    changed.epoch = 1
    assert not torch.equal(first, changed.__getitems__([0, 1])["pixel_values"])
    (tmp_path / "kind0" / "0.png").write_bytes(encoded(99, (21, 12)))
    assert splits.fingerprint != read(tmp_path, size=8).fingerprint


def test_a_run_on_images_of_any_size_and_one_that_meets_a_corrupt_image(tmp_path) -> None:
    photographs(tmp_path / "data")
    options = {"image_size": 16, "augment": {"resized_crop": [0.3, 1.0], "flip": True}}
    values = {"task": "vision", "model": "wrn16_4", "size": "smoke", "optimizer": "adamw", "options": options}
    chosen = RunSpec.from_dict({**values, "data": str(tmp_path / "data"), "overrides": {"batch_size": 8}})
    record = train(chosen, tmp_path / "run", progress=False)
    assert record["status"] == "ok", record["error"]
    (tmp_path / "data" / "kind0" / "0.png").write_bytes(encoded(0)[:50])
    record = train(chosen, tmp_path / "run", progress=False)
    assert record["status"] == "failed" and "0.png: not a readable image" in record["error"]
    for options, message in (
        ({"image_size": 0}, "image_size must be a whole number of pixels"),
        ({"augment": {"resized_crop": [0.3, 1.0]}}, "resized_crop needs option image_size"),
        ({"augment": {"crop": 1.5}}, "crop must be"),
    ):
        with pytest.raises(UserError, match=message):
            TASK.data(TASK.with_options("mlp", TASK.preset("mlp", "smoke"), options), None)


def hub_set(count=40, sizes=((20, 12),), columns=("image", "label"), kind="PNG") -> datasets.Dataset:
    image, label = columns
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog"])})
    rows = {
        image: [{"bytes": encoded(i, sizes[i % len(sizes)], kind=kind), "path": None} for i in range(count)],
        label: [i % 2 for i in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize(
    ("name", "columns", "test", "sizes"),
    [
        ("cifar100", ("img", "fine_label"), "test", ((20, 12),)),
        ("tiny-imagenet", ("image", "label"), "valid", ((20, 12),)),
        ("imagenet", ("image", "label"), "validation", ((20, 12), (9, 30))),
    ],
)
def test_sets_of_the_hub(monkeypatch, name, columns, test, sizes) -> None:
    asked = []

    def fake(repository, *, config=None, key="data"):
        asked.append(repository)
        return datasets.DatasetDict({"train": hub_set(40, sizes, columns), test: hub_set(10, sizes, columns)})

    monkeypatch.setattr(hub, "load", fake)
    from dataclasses import replace

    from hf_optim.tasks.vision import HUB, _hub

    _hub.cache_clear()
    model = {"cifar100": "wrn16_4", "tiny-imagenet": "resnet18@agr-tiny-imagenet", "imagenet": "vit_b16"}[name]
    preset = TASK.preset(model, "paper")
    preset = replace(preset, validation=replace(preset.validation, value=6))
    data = TASK.data(preset, None)
    _hub.cache_clear()
    assert asked == [HUB[name].repository] and data.name == name and "from the Hub" in data.note
    assert [len(part) for part in (data.train, data.validation, data.test)] == [34, 6, 10]
    assert data.facts["classes"] == ("cat", "dog")
    shape = (3, 224, 224) if name == "imagenet" else (3, 12, 20)
    assert data.facts["shape"] == shape and data.test.__getitems__([0, 9])["pixel_values"].shape == (2, *shape)
    assert sorted(data.train.labels.tolist() + data.validation.labels.tolist()) == [0] * 20 + [1] * 20
    if name == "tiny-imagenet":
        assert data.train.mean.tolist() == pytest.approx([0.480, 0.448, 0.398])


def test_hub_rows_read_one_image_at_a_time() -> None:
    rows = HubRows(hub_set(5), "set, train", "image", "label")
    assert len(rows) == 5 and rows[3] == ("set, train row 3", encoded(3), 1) and len(list(rows)) == 5
    splits = assemble({"train": rows, "validation": rows, "test": rows}, ["cat", "dog"])
    assert splits.shape == (3, 12, 20) and splits.classes == ("cat", "dog")
    broken = HubRows(hub_set(5).map(lambda row: {"label": -1}), "set, train", "image", "label")
    with pytest.raises(UserError, match="set, train row 0: label -1 is not one of 0 to 1"):
        assemble({"train": broken, "validation": rows, "test": rows}, ["cat", "dog"], size=8)


def test_printed_moments_replace_the_measured_ones() -> None:
    rows = HubRows(hub_set(5), "set", "image", "label")
    by_split = {"train": rows, "validation": rows, "test": rows}
    splits = assemble(by_split, ["cat", "dog"], moments=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    batch = splits.train.__getitems__([0])["pixel_values"]
    assert torch.allclose(batch, (splits.train.pixels[:1] / 255 - 0.5) / 0.25, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [None, Augment(crop=2, flip=True), Augment(jitter=0.2)])
def test_pictures_lie_channel_by_channel_in_memory(channels, augment) -> None:
    """Also where there is one channel, which torch takes for channels-last by its strides alone."""
    last = torch.randint(0, 256, (6, 9, 7, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    mean = std = torch.full((channels,), 0.5)
    images = Images(last, torch.zeros(6, dtype=torch.long), mean, std)
    plain = images[3]["pixel_values"]
    images.augment = augment
    values = images.__getitems__(range(6))["pixel_values"]
    assert values.stride() == torch.empty(values.shape).stride() and values.dtype is torch.float32
    assert augment is not None or torch.equal(values[3], plain)
    assert torch.allclose(plain, last[3].float() / 127.5 - 1, atol=1e-6)
