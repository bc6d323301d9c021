"""What a run refuses before it reads anything its dry run refuses, in the same line; what may be right passes."""

import shlex
import warnings

import pytest

from hf_optim.commands.main import main

REFUSED = {
    "vision --model densenet121 --model.architecture resnet1": "has no architecture 'resnet1' (did you mean resnet18",
    "vision --model vgg11 --model.architecture vgg_nope": "has no architecture 'vgg_nope' (did you mean vgg",
    "vision --model.augment 2.5": "augment: expected a mapping",
    "vision --model.augment '{crop: -1}'": "augment: crop must be a whole number of pixels, 0 or more, got -1",
    "vision --model.augment '{resized_crop: [0.5, 1]}'": "resized_crop needs option image_size",
    "lm --model llama --model.num_key_value_heads 3": "num_attention_heads 4 must be a multiple of num_key_value_heads",
    "lm --model llama --model.num_key_value_heads -2": "must be a multiple of num_key_value_heads -2, 1 or more",
    "lm --model llama --model.num_attention_heads 1": "num_attention_heads 1 must be a multiple of num_key_value_heads",
    "lm --model llama --model.hidden_size 12": "hidden_size 12 over num_attention_heads 4 must be even",
    "lm --model.tokenizer true": "tokenizer must be a text, got True",
    "lm --model.tokenizer null": "tokenizer must be a text, got None",
    "lm --model.vocabulary 257": "vocabulary must be at least 258",
    "lm --model.duplicates Keep": "duplicates must be drop or keep, got 'Keep'",
    "lm --model.held_out 0": "held_out must be an integer of at least 1",
    "albert --model bert --model.num_attention_heads -1": "must be a multiple of num_attention_heads, 1 or more",
    "logistic --model.pool [1]": "pool must be an integer of at least 1, got [1]",
    "logistic --model.pool 0": "pool must be an integer of at least 1, got 0",
    "logistic --model.crop 2.0": "crop must be an integer of at least 0, got 2.0",
    "logistic --model.crop [null]": "crop must be an integer of at least 0, got [None]",
    "logistic --model.labels odd": "labels must be parity or all",
    "translation --model.longest 1": "longest must be a whole number from 2 on, got 1",
    "finetune --model.length 2.5": "length must be a whole number of at least 1, got 2.5",
    "finetune --model.parameters [[1]]": "parameters must be a whole number of at least 1, got [[1]]",
    "finetune --model.checkpoint [x]": "checkpoint must be a text",
    "finetune --model lora --model.rank 0": "rank must be a number of at least 1, got 0",
    "logistic --report-to all": "'all' is no tracker",
    "logistic --model ''": "has no model '': choose from logistic, softmax",
    "logistic --data ''": "data: expected a name or a path, got ''",
    "lm --data ''": "data: expected a name or a path, got ''",
    "lm --data nowhere": "no such file or folder: nowhere",
    "finetune --data nowhere": "no such file or folder: nowhere",
    "translation --data nowhere": "nor nowhere.de and nowhere.en",
}


def train(capsys, words, *more) -> tuple[int, str]:
    code = main(["train", "--size", "smoke", "--steps", "1", "--task", *shlex.split(words), *more])
    shown = capsys.readouterr()
    return code, shown.err or shown.out


@pytest.mark.parametrize("words", REFUSED)
def test_a_dry_run_refuses_what_the_run_refuses(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # what finetune would train first
    looked, ran = train(capsys, words, "--dry-run"), train(capsys, words, "--output", "run")
    assert looked == ran and ran[0] == 2 and REFUSED[words] in ran[1] and ran[1].count("\n") == 1
    assert not (tmp_path / "run").exists() and not [*tmp_path.rglob("checkpoint-*")]


@pytest.mark.parametrize(
    "words",
    [
        "lm --model llama --model.num_key_value_heads 2",
        "lm --model llama --model.num_key_value_heads null",
        "lm --model.tokenizer words --model.vocabulary 100",
        "lm --model.tokenizer there/words",  # which may be made before the run
        "vision --model.augment '{crop: 4}'",
        "translation --model.longest 2",
        "translation --data pairs",
        "logistic --data nowhere --card A100",  # another machine may have it
        "logistic --model.crop 14",  # as images of one's own may be larger
    ],
)
def test_what_may_be_right_is_looked_at(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.de").touch()
    code, shown = train(capsys, words, "--dry-run")
    assert code == 0 and shown.startswith("costs ") and " 0 FLOPs" not in shown


@pytest.mark.parametrize(
    "words", ["vision --model mnist_cnn --model.image_size 3", "vision --model wrn16_4 --model.widen 0",
              "albert --model.hidden_size 0"],
)  # fmt: skip
def test_what_has_no_size_is_one_line(words, capsys):
    """torch warned before of tensors without elements, in two lines for each."""
    with warnings.catch_warnings(record=True) as said:
        code, shown = train(capsys, words, "--dry-run")
    assert code == 2 and shown.count("\n") == 1 and not [str(each.message) for each in said]
