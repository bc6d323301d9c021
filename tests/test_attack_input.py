"""What people give, badly: numbers of a run, texts in other encodings, names and pictures of any kind."""

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import hf_optim
from hf_optim.claims import cost
from hf_optim.commands.main import main
from hf_optim.core import numerals, shape, yaml12
from hf_optim.errors import UserError
from hf_optim.experiment import footprint
from hf_optim.experiment.spec import RunSpec
from hf_optim.study.folder import changes, rows
from hf_optim.study.launch import beginning
from hf_optim.study.plan import plan as planning
from hf_optim.study.plan import source
from hf_optim.study.report import figures
from hf_optim.tasks.data import blocks, corpora, image_sets, images, paragraphs, parallel

TRAIN = ["train", "--task", "vision", "--size", "smoke", "--dry-run"]


@pytest.mark.parametrize("value", ["nan", "inf", "1e400"])
@pytest.mark.parametrize("option", ["--seconds", "--max-grad-norm"])
def test_a_number_that_is_none_is_one_line(option, value, capsys):
    assert main([*TRAIN, option, value]) == 2
    key = option[2:].replace("-", "_")
    assert capsys.readouterr().err.startswith(f"error: overrides: {key} must be a finite number")


@pytest.mark.parametrize("key", ["steps", "epochs", "eval_every", "batch_size", "train_curve"])
def test_a_count_beyond_64_bits_could_not_be_read_again(key):
    with pytest.raises(UserError, match=f"{key} must be a finite number of at most 64 bits"):
        RunSpec("vision", optimizer={"name": "adamw"}, overrides={key: 2**63})


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_the_power_of_a_whole_number_has_an_end(name):
    p = torch.nn.Parameter(torch.ones(3))
    for r in (2**62, 10**400, 11):
        with pytest.raises(UserError, match="r = .* outside|more than 64 bits"):
            hf_optim.create(name, [p], r=r)


@pytest.mark.parametrize("rate", [1e155, 1e300])
@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_the_power_of_a_large_rate_weighs_each_step_alike(name, rate):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = hf_optim.create(name, [p], lr=rate)
    for _ in range(4):
        p.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.param_groups[0]["average"] == 0.25


def test_a_dry_run_refuses_what_the_run_would(capsys, monkeypatch, tmp_path):
    """Among many, one that cannot be run is a line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(footprint, "available", lambda: 1000)
    asked = [*TRAIN, "--gradient-accumulation-steps", "auto"]
    assert main(asked) == main([word for word in asked if word != "--dry-run"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and "auto: one sample takes" in first


@pytest.mark.parametrize("read", [images.read, paragraphs.read, corpora.documents_in, parallel.read])
def test_a_pipe_or_device_is_no_data(read, tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    for place in (tmp_path / "pipe.parquet", Path("/dev/zero")):
        with pytest.raises(UserError, match="is a pipe, a socket or a device: give a file or a folder"):
            list(read(place))


def test_the_weight_of_a_tiny_rate_is_zero_and_moves_nothing():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    hf_optim.create("schedule_free_sgd", [p], lr=1e-200).step()
    assert torch.equal(p.detach(), torch.ones(3))


@pytest.mark.parametrize(
    "read",
    [
        lambda path: paragraphs.read(path),
        lambda path: blocks.read(path),
        lambda path: list(corpora.documents_in(path.parent)),
        lambda path: parallel.read(path.with_suffix("")),
    ],
    ids=["paragraphs", "lines", "documents", "pairs"],
)
def test_text_of_another_encoding_is_no_text(read, tmp_path):
    text = "\n\n".join(f"a paragraph, {i}" for i in range(20)).encode("utf-16-le")
    for ending in ("txt", "de", "en"):
        (tmp_path / f"train.{ending}").write_bytes(text)
    with pytest.raises(UserError, match=r"train\.\w+ holds a NUL character \(at 1\).*convert it to UTF-8"):
        read(tmp_path / "train.txt")


@pytest.mark.parametrize(("ending", "why"), [("txt", "NUL character .at 5"), ("jsonl", "line 1 has more than 2 MB")])
def test_a_line_without_end_is_not_read_to_it(ending, why, tmp_path):
    """A terabyte of holes costs nothing to send."""
    file = tmp_path / f"train.{ending}"
    with file.open("wb") as opened:
        opened.write(b"words")
        opened.truncate(1 << 40)
    with pytest.raises(UserError, match=why):
        paragraphs.read(file)


def _png(size=(4, 4)):
    stream = io.BytesIO()
    Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)).save(stream, "PNG")
    return stream.getvalue()


def test_a_number_beyond_63_bits_is_called_so():
    with pytest.raises(UserError, match="^plan.seed: expected a whole number, got one beyond 63 bits$"):
        shape.check_shape({"seed": 2**63}, {"seed": int}, "plan")
    for number, told in ((1e308, "1e\\+308, beyond 1e\\+150"), (float("nan"), "nan"), (float("-inf"), "-inf")):
        with pytest.raises(UserError, match=f"^plan.loss: expected a number, got {told}$"):
            shape.check_shape({"loss": number}, {"loss": float}, "plan")


def test_half_a_character_is_in_no_plan(tmp_path):
    """A record or plan with one could not be read again: names of files may hold it, and escapes of a YAML."""
    with pytest.raises(UserError, match="half a character, which no record keeps: rename the file"):
        RunSpec("vision", optimizer={"name": "adamw"}, data="x\udcff.parquet")
    with pytest.raises(UserError, match="my.yaml, line 2: .* holds half a character"):
        source.parse('name: x\ntitle: "\\uD83D"', "my.yaml")
    assert source.parse('title: "\\uD83D\\uDE00"', "my.yaml").value == {"title": "\U0001f600"}
    named = tmp_path / os.fsdecode(b"\xff.yaml")
    named.write_text("{name: x, tasks: [{task: vision, size: smoke}], optimizers: [adamw, sgd], seeds: 2}")
    plan = planning.expand(source.read(named, "x"), origin=named.name)
    beginning.prepare(plan, named.read_text(), tmp_path / "study")
    assert changes.read_plan(tmp_path / "study").origin == r"\udcff.yaml"


def test_names_of_pictures_need_not_be_utf8(tmp_path):
    for number in range(24):
        folder = os.path.join(os.fsencode(tmp_path), b"\xff" if number % 2 else b"b")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, b"\xfe%d.png" % number), "wb") as file:
            file.write(_png())
    assert len(images.read(tmp_path, size=4).classes) == 2


def test_pictures_of_another_size_are_refused_before_the_rest_is_decoded(monkeypatch):
    decoded = []

    def decode(place, image):
        decoded.append(place)
        return image

    monkeypatch.setattr(images, "picture", decode)
    rows = [(str(i), np.zeros((4 + (i == 1), 4, 1), np.uint8), i % 2) for i in range(9)]
    with pytest.raises(UserError, match=r"4x4 \(0\) and 4x5 \(1\)"):
        images.assemble({"train": rows})
    assert decoded == ["0", "1"]


@pytest.mark.parametrize("label", [0.0, float("nan"), True, b"a", [0], None], ids=str)
def test_a_label_of_another_kind_is_named(label):
    rows = [(str(i), np.zeros((4, 4, 1), np.uint8), label) for i in range(30)]
    with pytest.raises(UserError, match="data: 0: label .* is neither a whole number nor a name"):
        images.assemble({"train": rows})


def test_what_pillow_says_of_exif_is_not_said(tmp_path):
    file = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(
        file, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x02\0\xff\xff\xff\xff" * 99
    )
    image_sets._prepare.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert image_sets.picture("a", file).shape == (8, 8, 3)
        Image.open(file).getexif()
    image_sets._prepare.cache_clear()
    assert [str(w.message) for w in said if w.category is UserWarning] == []


@pytest.mark.parametrize("digits", ["１", "1_0", "٣", "1_0.5"])
def test_numbers_are_written_in_ascii_digits(digits, capsys):
    for option in ("--steps", "--seed", "--seconds", "--checkpoint-every"):
        assert main([*TRAIN, option, digits]) == 2
        assert f"argument {option}: invalid " in capsys.readouterr().err
    assert main([*TRAIN, "--gradient-accumulation-steps", digits]) == 2
    assert f"expected a whole number or auto, got {digits!r}" in capsys.readouterr().err
    for read in (figures.width_of, cost.hours):
        with pytest.raises(UserError, match="got"):
            read(digits)
    assert rows.as_float(digits) is None


def test_numbers_are_taken_as_they_are_usually_written():
    assert [numerals.whole(text) for text in ("3", "-3", "+03", " 4 ")] == [3, -3, 3, 4]
    assert [numerals.number(text) for text in ("1e-3", ".5", "5.", "-2.5E+1", "inf")] == [
        1e-3,
        0.5,
        5,
        -25,
        float("inf"),
    ]


@pytest.mark.parametrize("value", ["!!int 3", "!!str 3", "! 3", "!!set {1, 2}", "!!seq [3]", "!x 3"])
def test_yaml_has_no_tags(value):
    with pytest.raises(UserError, match="x.yaml, line 2: .*tags such as .* are not allowed"):
        source.parse(f"name: x\nseeds: {value}\n", "x.yaml")
    with pytest.raises(yaml.YAMLError, match="are not allowed"):
        yaml12.load(value)


def test_yaml_that_is_written_is_read_as_the_same_by_both_versions():
    texts = ["1e-3", "09", "010", "0o17", "0x1f", "1:30", "1_000", ".5", ".nan", "yes", "null", "~", "", "2026-01-01"]
    texts += ["a: b", "# a", "- a", "{a}", "é\u2028\n", " a "]
    study = {"numbers": [1e-5, 1e22, -0.0, float("inf"), 7, True, None], "texts": texts, **dict.fromkeys(texts, 1)}
    text = yaml12.dump(study)
    assert yaml12.load(text) == yaml.safe_load(text) == study
    assert list(yaml12.load(text)) == list(study)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("ladder: {model: pretrained, parameters: [30000], tokens: [0.3]}", "chooses the shape of gpt2 and llama, not"),
        ("ladder: {model: gpt2, size: smoke, parameters: [30000], tokens: [1.0e+308]}", "308 is beyond 1e"),
        ("tasks: [{task: vision, overrides: {steps: 4}}]\nspeedup: {budgets: [1, 1.0e+308]}", "308 is beyond 1e"),
        ("tasks: [{task: vision}]\ntuning: {sampler: random, space: {sgd: {lr: [-1.0e+308, 1, linear]}}}", "is beyond"),
        (
            "tasks: [{task: vision}]\ntuning: {trials: 2, space: {sgd: {lr: [0.1, 0.10000000000000002, log]}}}",
            "must be below the",
        ),
    ],
)
def test_what_a_study_cannot_work_with_is_one_line(block, told, tmp_path, capsys):
    (file := tmp_path / "a.yaml").write_text(f"name: a\nseeds: 2\noptimizers: [adamw, sgd]\n{block}\n")
    assert main(["study", str(file), "--dry-run"]) == 2
    assert re.search(rf"a.yaml, line \d: .*{told}", capsys.readouterr().err)


def test_an_empty_option_is_not_the_current_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--task", "finetune", "--size", "smoke", "--model.checkpoint", "''"]) == 2
    assert "option 'checkpoint' is empty" in capsys.readouterr().err
