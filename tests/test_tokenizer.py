"""Tokenizers are trained once, kept by content, and a damaged copy is made anew."""

import pytest

from hf_optim.errors import UserError
from hf_optim.tasks.data import cache, tokenizer

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
