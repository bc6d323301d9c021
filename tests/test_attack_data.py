"""Data of strangers: tables that are none, pictures that start programs, texts without end, names that mean two things.

Whatever it is, it is one line: none of these may end in what pyarrow, csv, Pillow or Jinja say, or not end at all.
"""

from __future__ import annotations

import io
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_optim.errors import UserError
from hf_optim.experiment.task import names_data, paths_in
from hf_optim.study.plan.entries import with_data
from hf_optim.tasks.data import answers, blocks, cache, corpora, hub, images, json_lines, paragraphs, parallel, tables
from hf_optim.tasks.data.image_sets import picture

BYTES = pa.array([b"\xff\xfe no text"] * 4, pa.binary())
#: a column of texts that are not UTF-8, as only a program that means it writes them
NO_TEXT = pa.Array.from_buffers(pa.string(), 4, BYTES.buffers())
NO_DATE = pa.array([2**62] * 4, pa.int64()).view(pa.timestamp("ms"))

TABLES: dict[str, tuple[str, Any, str]] = {
    "not UTF-8": (".parquet", pa.table({"text": NO_TEXT}), "column 'text' cannot be read"),
    "no date": (".parquet", pa.table({"text": NO_DATE}), "column 'text' cannot be read"),
    "twice": (".csv", b"text,text\na,b\n", "the column 'text' twice"),
    "nested": (".parquet", pa.table({"text": [{"a": 1}] * 4}), "must hold texts, not dict"),
    "names of bytes": (".csv", "text\nhello\n".encode("utf-16"), "cannot be read as csv"),
    "many columns": (".csv", ",".join(f"c{i}" for i in range(1500)).encode() + b"\n", "'c19' and 1480 more"),
    "columns without end": (".csv", b"text" + b",c" * 2000 + b"\n", "more than 2000 names"),
    "lists": (".parquet", pa.table({"text": [["a"]] * 4}), "column 'text' holds lists"),
    # pyarrow looks each up among all: 20,000 of them, in a file of 200 KB, took minutes
    "parquet of columns": (".parquet", pa.table({f"c{i}": [0] for i in range(2001)}), "it has more than 2000 columns"),
    # pyarrow's parser goes down into it until the process ends
    "names without end": (
        ".jsonl",
        b"".join(b'{"text":"a","k%d":1}\n' % i for i in range(2001)),
        "more than 2000 names",
    ),
    "lines within each other": (".jsonl", b'{"text":' + b"[\n" * 101, "line 100 is nested more than 100 levels"),
    "null": (".jsonl", b'null\n{"text":"a"}\n', "line 1 is null"),
    "without end": (".jsonl", b'{"text":' + b"[" * 60_000 + b"]" * 60_000 + b"}\n", "nested more than 100 levels"),
}


def stored(folder: Path, ending: str, content: Any) -> Path:
    file = folder / f"train{ending}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        pq.write_table(content, file)
    return file


@pytest.mark.parametrize("name", [r"k%d", r"%d\\", r"%d\"k", r'k%d"  '], ids=["plain", "backslash", "quote", "spaces"])
def test_names_without_end_are_counted_however_they_are_written(tmp_path: Path, name: str) -> None:
    lines = '{"text":"\\"k%d\\": ' + '","' + name.removesuffix('"  ') + '"' + " " * name.endswith("  ") + ":1}\n"
    few = "".join(lines % (i, i % 5) for i in range(3000))
    assert len(paragraphs.texts(stored(tmp_path, ".jsonl", few.encode()))) == 3000
    many = "".join(lines % (i, i) for i in range(3000))
    with pytest.raises(UserError, match="more than 2000 names"):
        paragraphs.texts(stored(tmp_path, ".jsonl", many.encode()))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_none_is_one_line(tmp_path: Path, name: str) -> None:
    ending, content, why = TABLES[name]
    with pytest.raises(UserError, match=why) as error:
        paragraphs.texts(stored(tmp_path, ending, content))
    assert len(str(error.value)) < 1000


def test_a_small_file_of_many_rows_is_refused_before_they_are_read(tmp_path: Path) -> None:
    file = stored(tmp_path, ".parquet", pa.table({"text": pa.nulls(tables.MOST_ROWS + 1, pa.string())}))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"\.parquet holds 10,000,001 rows .*: give fewer of them"):
        paragraphs.read(file)


def test_the_size_of_a_table_is_not_what_its_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stored(tmp_path, ".parquet", pa.table({"text": pa.nulls(tables.MOST_ROWS + 1, pa.string())}))
    content = file.read_bytes()
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    # the first count of rows, as Thrift writes it, becomes ten in as many bytes
    forged = content[:end] + content[end:].replace(bytes([0x82, 0xDA, 0xC4, 0x09]), bytes([0x94, 0x80, 0x80, 0x00]), 1)
    file.write_bytes(forged)
    assert pq.read_metadata(file).num_rows == 10
    with pytest.raises(UserError, match=r"\.parquet holds 10,000,001 rows .*: give fewer of them"):
        paragraphs.read(file)
    monkeypatch.setattr(tables, "LARGEST", 1 << 26)
    file = stored(tmp_path, ".parquet", pa.table({"text": ["x" * 10_000] * 20_000}))  # which it holds once
    assert file.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"\.parquet holds 20,000 rows of 0.1 GB in all"):
        paragraphs.read(file)


def test_a_category_counts_as_often_as_it_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte of file held ten gigabytes of it: pyarrow keeps one text, and Python one for each row."""
    monkeypatch.setattr(tables, "LARGEST", 1 << 26)
    meant = pa.array(["x" * 10_000] * 20_000).dictionary_encode()
    for column in (meant, pa.StructArray.from_arrays([meant], ["bytes"])):
        file = stored(tmp_path, ".parquet", pa.table({"text": column}))
        assert file.stat().st_size < 1 << 20
        with pytest.raises(UserError, match=r"\.parquet holds 20,000 rows of 0.1 GB in all"):
            paragraphs.texts(file)
    few = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode(), "mark": pa.array([1, 2, 1])})
    assert paragraphs.texts(stored(tmp_path, ".parquet", few)) == ["a", "b", "a"]


def test_a_list_of_a_billion_members_is_not_read(tmp_path: Path) -> None:
    """Half a kilobyte of file makes one, of nothing at all."""
    members = pa.ListArray.from_arrays(pa.array([0, 1, 1, 1_000_001], pa.int32()), pa.nulls(1_000_001))
    table = pa.table({"tags": members, "text": ["a", "b", "c"], "of": [{"tags": ["x"], "name": "y"}] * 3})
    read = tables.read(stored(tmp_path, ".parquet", table))
    assert read["text"].to_pylist() == ["a", "b", "c"]
    assert {name: str(read[name].type) for name in ("tags", "of")} == {"tags": "null", "of": "null"}


def test_names_that_few_lines_hold_make_no_table(tmp_path: Path) -> None:
    """Three megabytes of it were five gigabytes in memory."""
    first = json.dumps({"text": "a", **{f"k{i}": 1 for i in range(1500)}}).encode()
    few = first + b"\n" + b'{"text":"a"}\n' * 5000
    assert len(paragraphs.texts(stored(tmp_path, ".jsonl", few))) == 5001
    with pytest.raises(UserError, match="few of its 13[0-9]{3} lines hold any of its 1501 columns"):
        paragraphs.texts(stored(tmp_path, ".jsonl", few + b'{"text":"a"}\n' * 20_000))


def nested(levels: int) -> Any:
    return {f"k{i}": nested(levels - 1) for i in range(10)} if levels else 1


WIDE = json.dumps({f"k{i}": 1 for i in range(1000)}).encode()
EMPTY: dict[str, tuple[bytes, bytes]] = {
    "ten names within each other": (json.dumps({"text": "a", "z": nested(3)}).encode() + b"\n", b"{}\n" * 40_000),
    "objects in one line": (WIDE + b"\n", b"{}" * 40_000),
    "members of a list": (b'{"text":"a","z":[' + WIDE + b"]}\n", b'{"text":"a","z":[' + b"{}," * 40_000 + b"{}]}\n"),
    "nothing in a list": (b'{"text":"a","z":[' + WIDE + b"]}\n", b'{"text":"a","z":[null' + b",null" * 40_000 + b"]}"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_places_without_end_are_counted_wherever_names_stand(tmp_path: Path, name: str) -> None:
    """A megabyte of it was six gigabytes in memory."""
    first, rest = EMPTY[name]
    assert len(tables.read(stored(tmp_path, ".jsonl", first + rest[:1000].rpartition(b"\n")[0]))) > 0
    with pytest.raises(UserError, match=r"few of its [0-9]+ lines hold any of its [0-9]{4} columns"):
        tables.read(stored(tmp_path, ".jsonl", first + rest))


def test_lists_of_numbers_and_of_messages_are_read(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": 'a, "{b'}, {"role": "me", "content": None, "calls": [{"x": [[1, 2], []]}]}]
    rows = [{"text": "a", "v": [0, 1.5, None] * 300, "messages": messages}] * 300
    file = stored(tmp_path, ".jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    assert paragraphs.texts(file) == ["a"] * 300
    columns = json_lines._Columns()
    for line in file.read_bytes().splitlines(keepends=True):
        columns.read(line, 1)
    assert (columns.rows, columns.width) == ([300, 270_000, 600, 300, 600, 600], [3, 1, 4, 2, 1, 1])


def test_brackets_in_a_text_are_no_levels(tmp_path: Path) -> None:
    file = stored(tmp_path, ".jsonl", json.dumps({"text": '["' + "[" * 500}).encode() + b"\n")
    assert paragraphs.texts(file) == ['["' + "[" * 500]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells how much memory a process has")
def test_a_value_that_a_thousand_rows_mean_is_not_made_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file of a few kilobytes; the rows that are read at once took all memory before they were counted."""
    monkeypatch.setattr(tables, "LARGEST", 1 << 28)
    file = tmp_path / "table.parquet"
    meant = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), pa.array([bytes(8 << 20)]))
    options: Any = {"use_dictionary": ["image"], "dictionary_pagesize_limit": 1 << 30, "write_statistics": False}
    pq.write_table(pa.table({"image": meant}), file, compression="zstd", store_schema=False, **options)
    assert file.stat().st_size < 10_000
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match="1024 rows take more than"):
        tables.read(file)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_tables_of_pairs_and_of_images_are_read_by_the_same_hand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'en' cannot be read"):
        parallel.read(stored(tmp_path, ".parquet", pa.table({"de": ["a"] * 4, "en": NO_TEXT})))
    with pytest.raises(UserError, match="'label' cannot be read"):
        images.read(stored(tmp_path, ".parquet", pa.table({"image": BYTES, "label": NO_TEXT})))


# --- pictures ---


def encoded(kind: str = "PNG", size: tuple[int, int] = (2, 2)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": {"label": {"names": 5}}}}', b"\xff"]
)
def test_what_datasets_writes_beside_a_table_is_looked_through(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": [encoded()], "label": [0]}).replace_schema_metadata({b"huggingface": metadata})
    assert images._parquet_rows(stored(tmp_path, ".parquet", table), "label", [])[1] == []


@pytest.mark.parametrize("label", ["²", "--5", "9" * 5000])
def test_a_label_that_only_looks_like_a_number_is_a_name(tmp_path: Path, label: str) -> None:
    file = stored(tmp_path, ".csv", f"image,label\nx.png,{label}\n".encode())
    assert [row[2] for row in images._csv_rows(file, "label")] == [label]


@pytest.mark.parametrize("content", [b"image,label\nx\xe9.png,1\n", b"image,label\n" + b"x" * 200_000 + b",1\n"])
def test_a_csv_of_images_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match="cannot be read as csv"):
        list(images._csv_rows(stored(tmp_path, ".csv", content), "label"))


@pytest.mark.parametrize("labels", [[{"a": 0}] * 4, [[1]] * 4, [b"a", b"b"] * 2, [1.0] * 4])
def test_labels_of_other_kinds_are_one_line(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(UserError, match="is neither a whole number nor a name|holds lists"):
        images.read(stored(tmp_path, ".parquet", pa.table({"image": [encoded()] * 4, "label": labels})))


def test_pictures_of_one_size_are_no_larger_in_memory_than_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty of 13,000 pixels a side, each in some kilobytes, were 30 GB: the first says what all come to."""
    written = io.BytesIO()
    Image.new("RGB", (90, 90)).save(written, "PNG")
    decoded: list[str] = []
    monkeypatch.setattr(images, "picture", lambda place, image: decoded.append(place) or picture(place, image))
    monkeypatch.setattr(tables, "LARGEST", 1 << 20)
    rows = [(f"row {number}", written.getvalue(), number % 2) for number in range(60)]
    with pytest.raises(UserError, match=r"60 images of 90x90 \(row 0\) have 0.0 GB in memory"):
        images.assemble({"train": rows})
    assert decoded == ["row 0"]


def test_the_pictures_of_all_splits_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey ones become three times as large where a single other one is not."""
    monkeypatch.setattr(tables, "LARGEST", 1 << 20)

    def rows(kind: str, count: int) -> list[Any]:
        written = io.BytesIO()
        Image.new(kind, (90, 90)).save(written, "PNG")
        return [(f"{kind} {number}", written.getvalue(), number % 2) for number in range(count)]

    for train, test in ((rows("RGB", 30), rows("RGB", 30)), (rows("L", 50), [*rows("L", 9), *rows("RGB", 1)])):
        with pytest.raises(UserError, match=r"60 images of 90x90 \(RGB 0\) have 0.0 GB in memory"):
            images.assemble({"train": train, "test": test})
        with pytest.raises(UserError, match="all pixels of the train split are equal"):
            images.assemble({"train": train[:10], "test": test[-10:]})


def test_a_picture_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS to Ghostscript, a program that runs it."""
    from PIL import EpsImagePlugin

    ran: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: ran.append(a) or Image.new("RGB", (2, 2)).im)
    with pytest.raises(UserError, match="not a readable image"):
        picture("here", encoded("EPS"))
    assert not ran


@pytest.mark.parametrize("image", [Path("x" * 5000), Path("a\0b"), encoded(size=(500, 500))])
def test_a_picture_that_cannot_be_opened_is_one_line(image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="data: here: "):
        picture("here", image)


# --- texts ---


@pytest.mark.parametrize("text", ["a" * 200_000, "a. " * 60_000, "." * 200_000, ". " * 60_000, "… " * 60_000])
def test_a_text_without_sentences_is_read_once(text: str) -> None:
    """From each letter to the end would take minutes, and days for a file of some megabytes."""
    assert len(paragraphs.sentences(text)) == 1


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% for", "{{ a.b.c }}", "{{ 'a' * 9**16 }}", "{{ 'a' * 9**6 }}"]
)
def test_a_chat_template_that_fails_is_one_line(template: str) -> None:
    from transformers import PreTrainedTokenizerFast

    apply = PreTrainedTokenizerFast.apply_chat_template
    tokenizer: Any = type("Tokenizer", (), {"apply_chat_template": apply, "get_chat_template": lambda s, t, *a: t})()
    tokenizer.special_tokens_map, tokenizer.chat_template = {}, template
    with pytest.raises(UserError, match="its chat template (cannot be used|makes a conversation 1000 times longer)"):
        answers.encode(tokenizer, [("a", "b")], 8)


@pytest.mark.parametrize("damage", ["{", '{"width": "uint16"}', None])
def test_a_corpus_that_is_cut_short_in_the_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    documents = [f"document number {i}" for i in range(2000)]
    tokenizer = blocks.words(documents, 100)
    whole = corpora.prepare(documents, "key", tokenizer, 10**9)
    ids, facts = whole.streams["train"].ids.tolist(), whole.facts
    del whole  # its files are mapped
    (home,) = cache.folder().glob("corpus-*")
    if damage is None:
        (home / "train.ids").write_bytes(b"")
    else:
        (home / "corpus.json").write_text(damage)
    again = corpora.prepare(documents, "key", tokenizer, 10**9)
    assert again.facts == facts and again.streams["train"].ids.tolist() == ids


def test_what_a_strangers_tokenizer_makes_of_a_corpus_is_not_kept_for_others_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import normalizers

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    documents = [f"good document number {i}" for i in range(2000)]
    tokenizers: list[Any] = [blocks.words(documents, 3000) for _ in range(3)]
    tokenizers[0].backend_tokenizer.normalizer = normalizers.Replace("good", "number")
    tokenizers[1].eos_token = "good"
    theirs, other, mine = (corpora.prepare(documents, "key", tokenizer, 10**9) for tokenizer in tokenizers)
    good = tokenizers[2].convert_tokens_to_ids("good")
    assert good not in theirs.streams["train"].ids and int(other.streams["train"].ids[0]) == good
    assert mine.streams["train"].ids[:2].tolist() == [tokenizers[2].eos_token_id, good]
    again = blocks.words(documents, 3000)
    again("a text", max_length=4, truncation=True)  # how it was last used is nothing it is
    assert corpora.identity(again) == corpora.identity(tokenizers[2])


def test_documents_of_the_same_names_sizes_and_times_are_not_the_same(tmp_path: Path) -> None:
    """An archive says when its files were changed, as that of a public corpus does."""
    known = []
    for name in ("theirs", "mine"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "part.txt"
        time.sleep(0.02)  # the system's clock ticks
        file.write_text(name.ljust(8))
        os.utime(file, (10**9, 10**9))
        known += [corpora.fingerprint_of(file.parent), corpora.fingerprint_of(file.parent)]
    assert known[0] == known[1] != known[2] == known[3]


# --- a name that means two things ---


def test_a_set_of_ours_is_meant_by_its_name_whatever_the_current_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir(), (tmp_path / "mine").mkdir()

    def given(data: str) -> list[str]:
        return [entry["data"] for entry in with_data(["vision", {"task": "lm"}], data)]

    assert given("digits") == ["digits", str(tmp_path / "digits")]
    assert given("./digits") == [str(tmp_path / "digits")] * 2 and given("mine") == [str(tmp_path / "mine")] * 2
    assert paths_in({"task": "vision", "data": "digits"}) == [] and paths_in({"task": "lm", "data": "digits"})
    assert names_data("lm", "fineweb-edu") and not names_data("no task", "digits")
    (tmp_path / "letters.de").touch()  # a translation's data is called without it
    assert paths_in({"task": "translation", "data": "letters"}) == ["letters.de"]


def test_a_folder_of_a_repositorys_name_is_not_read_in_place_of_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.txt").write_text("a secret")
    for repository, config in [*corpora.HUB.values(), ("ylecun/mnist", None)]:
        folder = tmp_path / "theirs" / repository
        folder.mkdir(parents=True)
        card = {"configs": [{"config_name": config or "default", "data_files": str(tmp_path / "secret.txt")}]}
        (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    monkeypatch.chdir(tmp_path / "theirs")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in corpora.HUB:
        with pytest.raises(UserError, match="in place of the Hub's"):
            next(corpora.documents(name))
    with pytest.raises(UserError, match="in place of the Hub's"):
        hub.load("ylecun/mnist")


# --- tokenizers ---
