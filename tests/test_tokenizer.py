"""Tokenizers are trained once, kept by content, and a damaged copy is made anew."""

import json

import pytest

from hf_optim.errors import UserError
from hf_optim.tasks.data import blocks, cache, tokenizer
from hf_optim.tasks.data.saved_tokenizer import read_tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the cat", "a mat for a cat"]
ROLES = {"pad_token": "<pad>", "unk_token": "<unk>"}


def trained(template=None):
    tokenizer._serialised.cache_clear()  # only the folder remembers
    return tokenizer.train("bpe", TEXTS, 280, ("<pad>", "<unk>"), roles=ROLES, template=template)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    tokenizer._serialised.cache_clear()


def test_a_kept_tokenizer_is_read_and_a_damaged_one_made_anew(monkeypatch) -> None:
    first = trained()
    (file,) = cache.folder().iterdir()
    whole = file.read_bytes()
    with monkeypatch.context() as context:
        context.setattr(tokenizer, "_build", None)  # nothing is trained
        assert trained().fingerprint == first.fingerprint
    for damaged in (whole[: len(whole) // 2], b"\xff\xfe", b""):
        file.write_bytes(damaged)
        assert trained().fingerprint == first.fingerprint and file.read_bytes() == whole


def test_one_text_needs_no_frame_for_a_pair() -> None:
    framed = trained(template=("$A <pad>", None))
    assert framed("the cat")["input_ids"] == [*trained()("the cat")["input_ids"], 0]


def test_without_words_or_room_there_is_one_line() -> None:
    with pytest.raises(UserError, match="no words"):
        tokenizer.train("bpe", [" ", ""], 280, ("<unk>",), roles=ROLES)
    with pytest.raises(UserError, match="too small"):
        tokenizer.train("bpe", TEXTS, 2, ("<pad>", "<unk>"), roles=ROLES)


@pytest.mark.parametrize("kind", ["words", "wordpiece", "unigram"])
@pytest.mark.parametrize("told", [{}, {"unk_token": "the"}], ids=["nothing", "another"])
def test_what_the_model_does_not_know_counts_as_unknown_whatever_the_settings_say(kind, told, tmp_path) -> None:
    """Its bytes counted as those of a word that was told, and bits per byte were a part of what they are."""
    if kind == "words":
        own = blocks.words(TEXTS, 100)
    else:
        own = tokenizer.train(kind, TEXTS, 60, ("<pad>", "<unk>", "<eos>"), roles=ROLES | {"eos_token": "<eos>"})
    own.save_pretrained(tmp_path)
    texts = ["the cat", "a \N{GREEK SMALL LETTER PI}\N{SNOWMAN} dog"]
    expected = blocks.encode(read_tokenizer(tmp_path), texts)
    assert expected.unknown.any()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["unk_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | told))
    assert (blocks.encode(read_tokenizer(tmp_path), texts).unknown == expected.unknown).all()
