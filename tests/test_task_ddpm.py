"""The diffusion task: its model and average, its samples and their figures, its data and options."""

import functools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("torchmetrics")

from PIL import Image  # noqa: E402
from untimed import untimed

from hf_optim.errors import UserError  # noqa: E402
from hf_optim.experiment.evaluation import evaluate_checkpoint  # noqa: E402
from hf_optim.experiment.spec import RunSpec  # noqa: E402
from hf_optim.experiment.task import Moment, load  # noqa: E402
from hf_optim.experiment.training import train  # noqa: E402
from hf_optim.tasks.data import pictures  # noqa: E402
from hf_optim.tasks.models import extractors  # noqa: E402
from hf_optim.tasks.models.ddpm import DDPMConfig, DDPMModel, batches_of_noise, unet  # noqa: E402

ROOT = Path(__file__).parent.parent
TASK = load("ddpm")


def spec(optimizer="adamw", **values) -> RunSpec:
    return RunSpec.from_dict({"task": "ddpm", "size": "smoke", "optimizer": optimizer, **values})


def history(folder) -> list[dict]:
    return untimed(folder)


def tiny(**values) -> DDPMModel:
    torch.manual_seed(0)
    common = {"resolution": 8, "image_channels": 1, "channels": 4, "multipliers": [1, 2], "attention": [4]}
    return DDPMModel(DDPMConfig(**{**common, "layers_per_block": 1, "dropout": 0.0, "flip": False, **values}))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Nothing is left in the home folder; a stand-in that has learnt less is as good for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(extractors, "_train", functools.partial(extractors._train, steps=60))
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddpm")
    return folder, train(spec(options={"early": 0.25}), folder, progress=False, checkpoint_every=5)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_records_the_loss_and_the_figures_of_its_samples(ran) -> None:
    folder, record = ran
    assert record["status"] == "ok", record["error"]
    figures = record["metrics"]
    for key in ("loss", "fid_small_cnn", "kid_small_cnn", "is_small_cnn", "is_std_small_cnn"):
        assert math.isfinite(figures[f"test_{key}"]) and math.isfinite(figures[f"validation_{key}"])
    assert (
        "train_fid_small_cnn" not in figures and "test_fid" not in figures
    )  # no Inception here, so none of its figures
    assert 0 < figures["test_loss"] < 1.1 and figures["loss_gap"] == figures["test_loss"] - figures["train_loss"]
    assert record["primary"]["name"] in figures and 1 <= figures["test_is_small_cnn"] <= 10
    assert "small_cnn: a CNN trained on the train split's labels" in record["data"]["note"]
    assert "8x8" in record["data"]["note"]


def test_grids_are_written_at_every_evaluation_the_early_one_too(ran) -> None:
    folder, record = ran
    rows = [row for row in history(folder) if "validation_loss" in row]
    assert [row["step"] for row in rows] == [0, 2, 4, 8]
    assert all(("validation_fid_small_cnn" in row) == (row["step"] > 0) for row in rows)
    names = [*(f"validation-{step:06d}.png" for step in (2, 4, 8)), "test-000008.png"]
    assert record["samples"] == sorted(f"samples/{name}" for name in names)
    with Image.open(folder / record["samples"][0]) as grid:
        assert grid.size == (8 * 33 - 1, 4 * 33 - 1) and grid.mode == "L"  # 32 pictures of 8x8, four times as large
        assert len(np.unique(np.asarray(grid))) > 16


def test_a_killed_run_goes_on_bit_identically_with_its_average(ran, tmp_path) -> None:
    folder, record = ran
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    (again / "record.json").unlink()
    shutil.rmtree(again / "checkpoint-8")
    resumed = train(spec(options={"early": 0.25}), again, progress=False, checkpoint_every=5, resume=True)
    assert resumed["metrics"] == record["metrics"] and history(again) == history(folder)
    whole, gone_on = (DDPMModel.from_pretrained(path / "checkpoint-8").state_dict() for path in (folder, again))
    assert all(torch.equal(value, gone_on[name]) for name, value in whole.items())
    assert not torch.equal(whole["unet.conv_in.weight"], whole["ema.conv_in.weight"])


def test_a_checkpoint_gives_the_numbers_of_its_record_and_only_for_its_data(ran) -> None:
    folder, record = ran
    figures = evaluate_checkpoint("ddpm", None, "smoke", folder / "checkpoint-8")
    best = "best_validation_fid_small_cnn"  # a checkpoint knows only its own moment
    assert {**figures, best: 0} == {**record["metrics"], best: 0}
    with pytest.raises(UserError, match="channels are 1, and those of .* at this size 3"):
        evaluate_checkpoint("ddpm", None, "smoke", folder / "checkpoint-8", data="emoji")


def test_a_line_search_sees_the_same_noise_again(tmp_path) -> None:
    overrides = {"steps": 2, "eval_every": 2, "max_grad_norm": 0}
    record = train(spec("sls", overrides=overrides), tmp_path, progress=False)
    assert record["status"] == "ok", record["error"]
    first, second = (row["train_loss"] for row in history(tmp_path) if "train_loss" in row)
    assert second < first


# --- the model -------------------------------------------------------------------------------------------------------


def test_the_paper_model_has_its_size_and_every_value_its_source() -> None:
    preset = TASK.preset("unet", "paper")
    with torch.device("meta"):
        assert sum(p.numel() for p in unet(DDPMConfig()).parameters()) == 35_746_307
    assert {value.source for value in preset.sources().values()} == {"paper", "code", "ours"}
    keys = ("channels", "multipliers", "attention", "layers_per_block", "dropout", "timesteps", "flip")
    for key in keys:
        value, default = preset.model.value[key], getattr(DDPMConfig(), key)
        assert value == (list(default) if isinstance(default, tuple) else default), key
    assert (DDPMConfig().beta_start, DDPMConfig().beta_end) == (1e-4, 0.02)
    for size in ("smoke", "small", "paper"):
        assert set(TASK.preset("unet", size).model.value) == set(TASK.options)
    early = TASK.callbacks(tiny(), preset, 2000 * 382)[1]
    assert early.step == 10 * 382


def test_training_runs_the_weights_and_evaluation_their_average() -> None:
    model = tiny()
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    noise, t = torch.randn_like(x), torch.tensor([0, 10, 500, 999])
    model.train()(x, noise, t).loss.backward()
    assert all(p.grad is not None for p in model.unet.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.ema.parameters())
    before = model.eval()(x, noise, t).losses
    with torch.no_grad():
        for p in model.unet.parameters():
            p.add_(0.1)
    assert torch.equal(model(x, noise, t).losses, before)
    assert not torch.allclose(model.train()(x, noise, t).losses, before)


def test_the_average_by_hand() -> None:
    model = tiny(ema_decay=0.75)
    weight, average = model.unet.conv_in.weight, model.ema.conv_in.weight
    start = average.clone()
    with torch.no_grad():
        weight.copy_(start + 1)
    model.update_ema()
    torch.testing.assert_close(average, start + 0.25)
    model.update_ema()
    torch.testing.assert_close(average, start + 1 - 0.75**2)
    model = tiny(ema_decay=0.0)  # as at size paper: the weights themselves
    with torch.no_grad():
        model.unet.conv_in.weight.add_(0.3)
    model.update_ema()
    torch.testing.assert_close(model.ema.conv_in.weight, model.unet.conv_in.weight, rtol=0, atol=0)


def test_the_loss_is_the_error_of_the_noise_at_a_timestep() -> None:
    model = tiny().eval()
    x, noise, t = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([3, 400, 999])
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[t].view(-1, 1, 1, 1)
    predicted = model.ema(kept.sqrt() * x + (1 - kept).sqrt() * noise, t).sample
    expected = ((predicted - noise) ** 2).mean(dim=(1, 2, 3))
    out = model(x, noise, t)
    torch.testing.assert_close(out.losses, expected)
    torch.testing.assert_close(out.loss, expected.mean())


def test_everything_random_is_drawn_in_the_forward_pass() -> None:
    model = tiny(flip=True, dropout=0.2).train()
    x = torch.rand(8, 1, 8, 8)
    state = torch.get_rng_state()
    first = model(x).losses
    other = model(x).losses
    torch.set_rng_state(state)
    assert torch.equal(model(x).losses, first) and not torch.equal(first, other)


def test_flips_mirror_about_half_of_the_training_images() -> None:
    seen = {}
    model = tiny(flip=True).train()
    model.unet.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    x = torch.arange(8.0).expand(400, 1, 8, 8)
    model(x, torch.zeros_like(x), torch.zeros(400, dtype=torch.long))
    mirrored = (seen["x"][:, 0, 0, 0] > seen["x"][:, 0, 0, -1]).float().mean()
    assert 0.4 < mirrored < 0.6


# --- samples and their figures ---------------------------------------------------------------------------------------


def test_noise_is_dealt_in_whole_batches_and_does_not_depend_on_the_processes() -> None:
    config = tiny().config
    alone = dict(batches_of_noise(config, 50, 16, seed=1))
    assert [len(alone[number]) for number in range(4)] == [16, 16, 16, 2]
    dealt = [dict(batches_of_noise(config, 50, 16, 1, rank, 3)) for rank in range(3)]
    assert [sorted(part) for part in dealt] == [[0, 3], [1], [2]]
    assert all(torch.equal(noise, alone[number]) for part in dealt for number, noise in part.items())
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], dict(batches_of_noise(config, 50, 16, seed=2))[0])


def test_figures_are_the_same_for_any_number_of_processes(ran, tmp_path, monkeypatch) -> None:
    _, record = ran
    preset = TASK.preset("unet", "smoke")
    data = TASK.data(preset, None)
    model = tiny().eval()
    with torch.no_grad():
        alone = TASK.sample(model, data, Moment("validation", 8, True, tmp_path, 0, 1))
        sent: list[list] = []
        monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: sent.append(mine) or mine)
        for rank in (1, 0):  # what each process would send; alone it cannot say anything yet
            TASK.sample(model, data, Moment("validation", 8, True, None, rank, 2))
        monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: sent[1] + sent[0])
        for rank in range(2):
            assert TASK.sample(model, data, Moment("validation", 8, True, None, rank, 2)) == alone
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["validation-000008.png"]


def test_evaluations_noise_each_image_in_its_own_way() -> None:
    data = pictures.NoisedPictures(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), 1000)
    whole, part = data.__getitems__(range(9)), data.__getitems__([7, 2])
    for key in ("pixel_values", "noise", "timesteps"):
        assert torch.equal(whole[key][[7, 2]], part[key])
    assert len(whole["timesteps"].unique()) > 5 and torch.equal(whole["pixel_values"], -torch.ones(9, 1, 8, 8))


def test_the_stand_in_is_trained_once_and_again_if_its_file_is_damaged(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    labels = torch.arange(40) % 2
    pixels = (labels.view(-1, 1, 1, 1) * 200).expand(-1, 1, 8, 8).to(torch.uint8)
    trained = []
    original = extractors._train
    monkeypatch.setattr(extractors, "_train", lambda *args: trained.append(1) or original(*args, batch=8))
    state = torch.get_rng_state()
    first = extractors.small_cnn(pixels, labels, 2, (pixels, labels))
    torch.rand(1)  # the next one must not depend on it
    (file,) = (tmp_path / "hf_optim").iterdir()
    content = file.read_bytes()
    second = extractors.small_cnn(pixels, labels, 2, (pixels, labels))
    assert trained == [1] and second.about == first.about and "100%" in first.about
    file.write_bytes(content[:100])
    third = extractors.small_cnn(pixels, labels, 2, (pixels, labels))
    assert trained == [1, 1] and third.about == first.about and file.read_bytes() == content
    torch.set_rng_state(state)
    features, logits = third(pixels, torch.device("cpu"))
    assert features.shape == (40, 64) and logits.shape == (40, 2)
    extractors.small_cnn(pixels[:20], labels[:20], 2, (pixels, labels))
    assert len(trained) == 3 and len(list((tmp_path / "hf_optim").iterdir())) == 2  # other data, another stand-in


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file of the right shape; the published weights are not at hand here."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save(theirs.FeatureExtractorInceptionV3("x", ["2048"]).state_dict(), file)
    return file


def test_given_inception_weights_are_used_for_the_published_kind_of_figures(inception_file, monkeypatch) -> None:
    extractor = extractors.inception(str(inception_file))
    features, logits = extractor(torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8), torch.device("cpu"))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008) and extractor.suffix == ""
    monkeypatch.setattr(extractors, "inception", lambda place: extractor)
    preset = TASK.with_options("unet", TASK.preset("unet", "smoke"), {"inception": str(inception_file)})
    data = TASK.data(preset, None)
    assert [extractor.suffix for extractor in data.facts["sampling"].extractors] == ["_small_cnn", ""]
    assert "Inception v3" in data.note


def test_missing_or_wrong_inception_weights_are_one_line_before_anything_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError, match=r"not at torch's cache .*download https://.*--model.inception PATH") as caught:
        TASK.data(TASK.preset("unet", "paper"), None)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not at .*missing.pth"):
        train(spec(options={"inception": str(tmp_path / "missing.pth")}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "part.pth")
    torch.save({"fc.weight": torch.zeros(1, 1).expand(1008, 2**27)}, tmp_path / "spread.pth")
    wrong = {name: "is no file of weights" for name in ("text.pth", "part.pth", "spread.pth")}
    for name, message in {**wrong, "other.pth": "another network's weights"}.items():
        with pytest.raises(UserError, match=message):
            extractors.inception(str(tmp_path / name))


def test_inception_weights_that_are_exchanged_meanwhile_run_nothing(inception_file, tmp_path, monkeypatch) -> None:
    """torch-fidelity reads them a second time, and asks for more than weights."""
    file = shutil.copy(inception_file, tmp_path)
    reading = torch.load

    def exchanging(*given, **how):
        stored = reading(*given, **how)
        torch.save(type("Code", (), {"__reduce__": lambda _: (os.mkdir, (str(tmp_path / "ran"),))})(), file)
        return stored

    monkeypatch.setattr(torch, "load", exchanging)
    with pytest.raises(UserError, match="is no file of weights"):
        extractors.inception(file)
    assert not (tmp_path / "ran").exists()


# --- data and options ------------------------------------------------------------------------------------------------


def folder_of_images(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        place = folder / f"kind{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return folder


def test_ones_own_images_are_cut_square_and_scaled_down(tmp_path) -> None:
    own = folder_of_images(tmp_path / "own", [(24, 16)] * 60)
    data = TASK.data(TASK.preset("unet", "smoke"), str(own))
    assert data.train[0]["pixel_values"].shape == (3, 8, 8) and data.facts["image_channels"] == 3
    middle = torch.tensor(np.asarray(Image.open(own / "kind0" / "0.png"))[:, 4:20].copy()).permute(2, 0, 1)
    scaled = pictures.resized(middle[None], 8)
    wide = torch.cat([middle[:, :, :4], middle, middle[:, :, :4]], dim=2)
    assert torch.equal(pictures.resized(wide[None], 8), scaled)
    assert abs(scaled.float().mean() - middle.float().mean()) < 4  # an average of areas, not single pixels
    assert TASK.model("unet", TASK.preset("unet", "smoke"), data).config.image_channels == 3


def test_images_that_do_not_fit_are_one_line(tmp_path) -> None:
    preset = TASK.preset("unet", "smoke")
    mixed = folder_of_images(tmp_path / "mixed", [(8, 8)] * 30 + [(9, 8)])
    small = folder_of_images(tmp_path / "small", [(6, 6)] * 40)
    (tmp_path / "empty").mkdir()
    for source, message in (
        (mixed, "differ in size"), (small, "6x6 are smaller than the model's 8x8"), (tmp_path / "empty", "no images"),
        (tmp_path / "nowhere", "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            TASK.data(preset, str(source))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 9}, "multiple of 2 for 2 levels"),
        ({"channels": 5}, "even"),
        ({"multipliers": []}, "at least one level"),
        ({"multipliers": [1, 0.5]}, "list of whole numbers"),
        ({"ema_decay": 1.0}, "up to but not including 1"),
        ({"dropout": "much"}, "number"),
        ({"flip": 1}, "true or false"),
        ({"real": "test"}, "split or train"),
        ({"generated": 5}, "20 or more"),
        ({"ddim_steps": 2000}, "at most the timesteps"),
        ({"width": 5}, "unknown option 'width'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_one_line(options, message, tmp_path) -> None:
    with pytest.raises(UserError, match=message):
        train(spec(options=options), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_task_is_described_without_torch() -> None:
    code = "import sys; from hf_optim.experiment import task; task.describe('ddpm'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"
