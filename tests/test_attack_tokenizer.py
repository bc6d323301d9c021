"""Tokenizers of strangers: settings that name classes and files, and texts that grow as they are read."""

from __future__ import annotations

import base64
import functools
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hf_optim.errors import UserError
from hf_optim.tasks.data import answers, blocks
from hf_optim.tasks.data import tokenizer as training
from hf_optim.tasks.data.saved_tokenizer import read_tokenizer
from hf_optim.tasks.data.tokenizer_growth import check_growth


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    blocks.words(["some words of a text"], 100).save_pretrained(folder / "words")
    roles = {"unk_token": "<unk>", "eos_token": "<eos>"}
    training.train("bpe", ["some words"], 300, ("<unk>", "<eos>"), roles=roles).save_pretrained(folder / "bpe")
    return folder


@pytest.fixture
def theirs(tmp_path: Path, kept: Path) -> Path:
    return shutil.copytree(kept / "words", tmp_path / "theirs")


def retold(folder: Path, name: str = "tokenizer.json", **values: Any) -> None:
    file = folder / name
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **values}))


def form(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer = read_tokenizer(folder)
    return tokenizer.backend_tokenizer.to_str(), tokenizer.init_kwargs


# --- settings ---


@pytest.mark.parametrize("place", ["tokenizer_config.json", "special_tokens_map.json", "below/tokenizer_config.json"])
def test_settings_name_no_class_and_no_file(theirs: Path, tmp_path: Path, place: str) -> None:
    """A class of transformers' reads further files and may ask the Hub; a vocabulary that is a path was read, and its
    lines stood in each checkpoint of the run."""
    known = form(theirs)
    mine = tmp_path / "mine.txt"
    mine.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhunter2\n")
    files = {key: str(mine) for key in ("vocab", "merges", "vocab_file", "tokenizer_file", "target_spm", "gguf_file",
             "added_tokens_file", "name_or_path", "fast_tokenizer_files", "generator", "question_encoder")}  # fmt: skip
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "attribute_map": {"a": "auto_map"}, "a": "evil"}
    more = {"init_inputs": [str(mine)], "extra_special_tokens": ["<more>"] * 9, "mecab_kwargs": {"dic": str(mine)},
            "added_tokens_decoder": {"0": {"content": "[P]"}}, "add_bos_token": True, "encode": 5}  # fmt: skip
    (theirs / "below").mkdir()
    for name in ("BertTokenizer", "OneFormerImageProcessor", "AutoProcessor", "RagTokenizer", "GPT2LMHeadModel"):
        retold(theirs, place, tokenizer_class=name, **files, **code, **more)
        assert form(theirs) == known
    retold(theirs, "config.json", tokenizer_class="AutoProcessor", model_type="rag", **files, **code)
    assert form(theirs) == known
    read_tokenizer(theirs).save_pretrained(tmp_path / "saved")
    assert not [file for file in (tmp_path / "saved").rglob("*") if "hunter2" in file.read_text()]


@pytest.mark.parametrize("place", ["tokenizer.json", "below/tokenizer.json"])
def test_words_are_not_read_from_a_file_of_mine(theirs: Path, tmp_path: Path, place: str) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("[UNK]\nhunter2\n")
    (theirs / "below").mkdir()
    shutil.copy(theirs / "tokenizer.json", theirs / "below")
    known = form(theirs)
    retold(theirs, place, model={"type": "WordPiece", "vocab": str(mine), "unk_token": "[UNK]"})
    if place != "tokenizer.json":
        assert form(theirs) == known
        return
    with pytest.raises(UserError, match="cannot be read"):
        read_tokenizer(theirs)


def test_a_tokenizer_is_its_one_file(theirs: Path) -> None:
    """What transformers makes of a vocabulary goes by classes that the folder names."""
    (theirs / "tokenizer.json").rename(theirs / "tokenizer.1.0.json")
    for other in ("vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "tekken.json"):
        (theirs / other).write_text("{}")
    with pytest.raises(UserError, match="holds no tokenizer.json: AutoTokenizer"):
        read_tokenizer(theirs)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_what_transformers_reads_is_read(kept: Path, tmp_path: Path, kind: str) -> None:
    theirs = shutil.copytree(kept / kind, tmp_path / "theirs")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    told: dict[str, Any] = {"chat_template": template, "model_max_length": 77, "padding_side": "left"}
    told |= {"pad_token": {"__type": "AddedToken", "content": "<eos>"}, "model_input_names": ["input_ids"]}
    retold(theirs, "tokenizer_config.json", **told)
    own, their = read_tokenizer(theirs), AutoTokenizer.from_pretrained(theirs)
    for name in ("eos_token", "pad_token", "unk_token", "bos_token", *told):
        assert str(getattr(own, name)) == str(getattr(their, name))
    text = "some words, and others <eos> of a text"
    assert own(text) == their(text) and list(own(text)) == ["input_ids"] and own.get_vocab() == their.get_vocab()
    own.save_pretrained(tmp_path / "saved")
    assert read_tokenizer(tmp_path / "saved")(text) == own(text)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == template


def test_special_tokens_stand_in_an_older_file_or_in_the_models_configuration(theirs: Path) -> None:
    """As in GPT-2's own folder."""
    told = json.loads((theirs / "tokenizer_config.json").read_text())
    (theirs / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024}))
    assert read_tokenizer(theirs).eos_token is None
    retold(theirs, "config.json", eos_token_id=[0, 1], bos_token_id=1, pad_token_id=2**40, mask_token_id=-1)
    read = read_tokenizer(theirs)
    assert (read.eos_token, read.bos_token, read.pad_token, read.mask_token) == (told["eos_token"], "<unk>", None, None)
    retold(theirs, "special_tokens_map.json", eos_token={"content": "some"}, mask_token="", cls_token=5)
    read = read_tokenizer(theirs)
    assert (read.eos_token, read.mask_token, read.cls_token) == ("some", None, None)
    retold(theirs, "special_tokens_map.json", tokenizer_file="/home/me/tokenizer.json", name_or_path="x/y")
    assert read_tokenizer(theirs).name_or_path == ""


@pytest.mark.parametrize(
    "values",
    [
        {"model_max_length": "x", "padding_side": "up", "model_input_names": [5], "eos_token": ["a"]},
        {"model_max_length": None, "chat_template": 5, "eos_token": {"content": 5}, "pad_token": {}},
        {"chat_template": [5, {"name": 1}], "model_input_names": "input_ids", "truncation_side": ["left"]},
    ],
)
def test_settings_of_another_kind_are_none(theirs: Path, values: dict[str, Any]) -> None:
    retold(theirs, "tokenizer_config.json", **values)
    read = read_tokenizer(theirs)
    assert (read.padding_side, read.truncation_side, read.chat_template) == ("right", "right", None)
    assert read("some words")["input_ids"] == [2, 3]


# --- templates ---


def test_a_chat_templates_name_is_no_file(theirs: Path, tmp_path: Path) -> None:
    """Checkpoints hold the tokenizer: with transformers 5.6 a template's name led to a file of the user's."""
    mine = str(tmp_path / "mine")
    for several in (
        [{"name": "default", "template": "x"}, {"name": mine, "template": "y"}],
        {"default": "x", mine: "y"},
    ):
        retold(theirs, "tokenizer_config.json", chat_template=several)
        assert read_tokenizer(theirs).chat_template == "x"
        read_tokenizer(theirs).save_pretrained(tmp_path / "saved")
        assert not Path(mine).exists() and not [*tmp_path.rglob("mine*")]
    (theirs / "chat_template.jinja").write_text("its own")
    assert read_tokenizer(theirs).chat_template == "its own"


def test_a_chat_template_reads_nothing_of_this_machine(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox of jinja2 3.1.5 lets it; transformers 5.6 takes that, and later ones refuse it."""
    monkeypatch.setenv("MY_SECRET", "hunter2")
    tokenizer = read_tokenizer(theirs)
    reading = "'{0.__globals__[inspect].os.environ[MY_SECRET]}'"
    tokenizer.chat_template = f"{{{{ ({reading}|attr('format'))(raise_exception) }}}}"
    with pytest.raises(UserError, match="its chat template cannot be used: SecurityError"):
        answers.encode(tokenizer, [("a", "b")], 10)
    tasks = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert "jinja2>=3.1.6" in tasks["optional-dependencies"]["tasks"]


# --- files ---


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "merges.txt", "chat_template.jinja"])
def test_what_is_read_whole_has_no_gigabytes(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as words:
        words.truncate(1 << 40)
    with pytest.raises(UserError, match=f"{name} has more than 128 MB"):
        read_tokenizer(tmp_path)


def test_links_deeper_in_a_folder_lead_nowhere_else(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret")
    (theirs / "additional_chat_templates").mkdir()
    (theirs / "additional_chat_templates" / "x.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="x.jinja is a link that leads elsewhere"):
        read_tokenizer(theirs)


DEEP = functools.reduce(lambda inner, _: [inner], range(200), [])
DAMAGED = {
    "deep": (json.dumps({"added_tokens": DEEP}), "nested too deeply"),
    "no end of it": ("[" * 100_000, "nested too deeply"),
    "half": ('{"model": {', "cannot be read"),
    "a list": ("[]", "holds no mapping"),
    "nothing": ("{}", "cannot be read"),
    "not a number": ('{"model": NaN}', "NaN is not JSON"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line(theirs: Path, name: str) -> None:
    text, why = DAMAGED[name]
    (theirs / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=why) as said:
        read_tokenizer(theirs)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_damaged_settings_are_one_line(theirs: Path, name: str) -> None:
    told = json.loads((theirs / "tokenizer_config.json").read_text())
    told.pop("added_tokens_decoder", None)
    (theirs / "tokenizer_config.json").write_text(json.dumps(told))
    (theirs / name).write_text("{")
    with pytest.raises(UserError, match=f"{re.escape(name)} cannot be read"):
        read_tokenizer(theirs)


def test_a_name_that_comes_twice_is_read_as_it_was_looked_at(theirs: Path) -> None:
    """Readers differ in which of the two they take."""
    text = (theirs / "tokenizer.json").read_text()
    (theirs / "tokenizer.json").write_text(text.replace('"normalizer": null', f'"normalizer": {json.dumps(GROWS)}', 1))
    with pytest.raises(UserError, match="longer than 1000 times"):
        read_tokenizer(theirs)
    doubled = f'"normalizer": {json.dumps(GROWS)},\n  "normalizer": null'
    (theirs / "tokenizer.json").write_text(text.replace('"normalizer": null', doubled, 1))
    assert read_tokenizer(theirs).backend_tokenizer.normalizer is None


# --- what grows, fails or never ends ---


def replaced(letters: int) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * letters}


GROWS = {"type": "Sequence", "normalizers": [replaced(100)] * 3}
BLOWS_UP = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
FAILS: dict[str, tuple[dict[str, Any], str]] = {
    "grows": ({"normalizer": GROWS}, "longer than 1000 times"),
    "panics": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA////"}}, "fails|cannot be read"),
    "no expression": ({"pre_tokenizer": {**BLOWS_UP, "pattern": {"Regex": "("}}}, "cannot be read"),
    "no end": ({"pre_tokenizer": BLOWS_UP}, "it fails at a text of the data"),
}


@pytest.mark.parametrize("name", FAILS)
def test_a_tokenizer_that_fails_is_one_line(kept: Path, tmp_path: Path, name: str) -> None:
    change, why = FAILS[name]
    theirs = shutil.copytree(kept / "bpe", tmp_path / "theirs")
    retold(theirs, **change)
    with pytest.raises(UserError, match=why):
        blocks.encode(read_tokenizer(theirs), ["x" * 60])


def test_merges_are_not_dropped_at_random(kept: Path, tmp_path: Path) -> None:
    theirs = shutil.copytree(kept / "bpe", tmp_path / "theirs")
    model = json.loads((theirs / "tokenizer.json").read_text())["model"]
    retold(theirs, model={**model, "dropout": 0.5})
    with pytest.raises(UserError, match="drops merges at random"):
        read_tokenizer(theirs)
    retold(theirs, model={**model, "dropout": 0.0})
    read_tokenizer(theirs)


def test_nothing_is_padded_or_cut_unasked(theirs: Path) -> None:
    padding = {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<eos>"}  # fmt: skip
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    known = read_tokenizer(theirs)("some words")
    retold(theirs, padding=padding, truncation=cut)
    assert read_tokenizer(theirs)("some words") == known and len(known["input_ids"]) == 2


@pytest.mark.parametrize("rest", [{"type": "WordLevel", "unk_token": "<unk>"}, {"type": "BPE", "merges": []}])
def test_ids_beyond_any_model_are_refused(theirs: Path, rest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of their frequencies, and each copy of a BPE, take as much memory as the highest one says."""
    known = {"<eos>": 0, "<unk>": 1}
    retold(theirs, model={**rest, "vocab": {**known, "some": 70}})
    assert blocks.ids_of(read_tokenizer(theirs)) == 71 and len(read_tokenizer(theirs)) == 3
    retold(theirs, model={**rest, "vocab": {**known, "some": 4_000_000_000}})
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast", None)  # which makes a copy
    with pytest.raises(UserError, match="its ids go up to 4000000000"):
        read_tokenizer(theirs)


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BETWEEN = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
LONG = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4) + b"a\0" + b"b" * 5000).decode()}
FRAMED = {"type": "TemplateProcessing", "single": [TEXT, TEXT], "pair": [], "special_tokens": {}}
MARKED = [{"type": "Metaspace", "replacement": mark, "prepend_scheme": "always", "split": True} for mark in "ab"]
IDEOGRAPHS = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
SPELLED = [{"type": "Replace", "pattern": {"String": "a"}, "content": "\ufdfa"}, {"type": "NFKD"}]


def steps(*normalizers: Any, words: Any = ()) -> dict[str, Any]:
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {
            "type": "Sequence",
            "normalizers": [5],
            "pretokenizers": words,
        },  # only the latter are its own
    }


GROWING: dict[str, dict[str, Any]] = {
    "a table": {"normalizer": LONG},
    "a frame": {"post_processor": FRAMED | {"single": [TEXT] * 2000}},
    "frames": {"post_processor": {"type": "Sequence", "processors": [FRAMED] * 12}},
    "marks": {"post_processor": FRAMED | {"special_tokens": {"x": {"id": "x", "ids": [1] * 2000, "tokens": []}}}},
    "bytes": steps(*[{"type": "ByteLevel"}] * 3),
    "bytes before words": steps(words=[LEVEL] * 5),
    "both": steps({"type": "ByteLevel"}, {"type": "ByteLevel"}, words=[LEVEL] * 2),
    "between letters": steps(*[BETWEEN] * 12),
    "of two kinds": steps(*[{"type": "ByteLevel", "content": "", "prepend": "", "pattern": {"String": "x"}}] * 3),
    "of no type": steps(*[{"pattern": {"Regex": ""}, "content": "a"}] * 12),
    "before each part": steps(*[{"prepend": "a"}] * 10),
    "around ideographs": steps(*[IDEOGRAPHS] * 7),
    "letters that are words": steps(*SPELLED * 3),
    "before each word": steps(words=MARKED * 13),
}


@pytest.mark.parametrize("name", GROWING)
def test_a_text_that_doubles_at_each_step_is_refused(theirs: Path, name: str) -> None:
    (theirs / "tokenizer.json").write_text(json.dumps(GROWING[name]))
    with pytest.raises(UserError, match="makes a text longer than 1000 times"):
        read_tokenizer(theirs)


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
def test_what_a_tokenizer_adds_is_not_made_longer_without_end(theirs: Path, place: str) -> None:
    """It is put through the same steps as a text."""
    retold(theirs, normalizer=BETWEEN | {"content": "b" * 400})
    added = [{"id": 1, "content": "a" * 400_000}]
    retold(theirs, place, added_tokens=added, eos_token=added[0])
    with pytest.raises(UserError, match="what its tokenizer adds has more than 128 M letters"):
        read_tokenizer(theirs)


def test_long_pieces_within_each_other_are_not_looked_up(theirs: Path) -> None:
    pieces = [["a" * length, -1.0] for length in range(1, 600)]
    (theirs / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}}))
    with pytest.raises(UserError, match="looks up words of more than"):
        read_tokenizer(theirs)


def test_the_steps_of_tokenizers_there_are_are_taken(tmp_path: Path) -> None:
    """As GPT-2's and ALBERT's."""
    for told in (
        {"pre_tokenizer": LEVEL, "normalizer": {"type": "Sequence", "normalizers": []}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
                    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                    {"type": "Prepend", "prepend": "▁"},
                ],
            },
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"},
            "post_processor": FRAMED | {"single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, TEXT]},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": [["▁the", -3.5]]},
        },
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "no table"}, "post_processor": {"single": [1]}},
    ):
        check_growth(tmp_path, told, [])


@pytest.mark.parametrize(
    "model", [{"max_input_chars_per_word": 2**40}, {"continuing_subword_prefix": "#" * 20_000}], ids=["word", "prefix"]
)
def test_a_word_is_not_looked_up_for_ever(theirs: Path, model: dict[str, Any]) -> None:
    retold(theirs, model={"type": "WordPiece", "vocab": {"<unk>": 0}, "unk_token": "<unk>", **model})
    with pytest.raises(UserError, match="more than 10000 letters"):
        read_tokenizer(theirs)


# --- tokenizers that are trained and kept ---


def test_texts_that_run_into_each_other_are_not_kept_as_the_tokenizer_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text with NULs in it, as a table may hold, was kept as what is trained on its parts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = ["alpha beta gamma", "beta gamma", "theta beta"] * 20
    for mark in ("\0", "", " "):
        made = []
        for some in ([mark.join(texts)], texts):
            training._serialised.cache_clear()  # only the folder remembers
            made.append(training.train("word", some, 300, ("<unk>",), roles={"unk_token": "<unk>"}))
        assert "alpha" in made[1].get_vocab() and len(made[1]) == 5, mark
    assert len(list((tmp_path / "hf_optim").iterdir())) == 4
