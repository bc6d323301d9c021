"""The papers' data sets as they are distributed, made small, and archives and pickles of somebody who means harm."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_optim.errors import UserError
from hf_optim.experiment import task
from hf_optim.tasks.data import (
    archives,
    blocks,
    corpora,
    images,
    paragraphs,
    parallel,
    published_counts,
    published_texts,
    unpickled,
)

RANDOM = np.random.default_rng(0)


def pixels(count: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8)


def packed(folder: Path, archive: Path) -> Path:
    """The folder as .zip or .tar.gz, with itself as the top."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for file in files:
                zipped.write(file, f"{folder.name}/{file.relative_to(folder)}")
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, folder.name)
    return archive


def cifar(folder: Path, kind: str, fine: bool) -> dict[str, tuple[np.ndarray, list[int]]]:
    """A small CIFAR of two batches (CIFAR-100: one) and a test batch; gives the pixels and labels of each split."""
    folder.mkdir()
    names = ["train"] if fine else ["data_batch_1", "data_batch_2"]
    held: dict[str, tuple[list[np.ndarray], list[int]]] = {"train": ([], []), "test": ([], [])}
    for name in [*names, "test" if fine else "test_batch"]:
        table, labels = pixels(12), [i % 3 for i in range(12)]
        split = "test" if name.startswith("test") else "train"
        held[split][0].append(table)
        held[split][1].extend(labels)
        if kind == "python":
            keys = {b"data": table, b"fine_labels" if fine else b"labels": labels, b"coarse_labels": [0] * 12}
            (folder / name).write_bytes(pickle.dumps(keys, protocol=2))
        else:
            head = np.array([[7, label] if fine else [label] for label in labels], dtype=np.uint8)
            (folder / f"{name}.bin").write_bytes(np.hstack([head, table]).tobytes())
    classes = [b"cat", b"dog", b"owl"]
    if kind == "python":
        meta = {b"fine_label_names" if fine else b"label_names": classes}
        (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(meta, protocol=2))
    else:
        file = "fine_label_names.txt" if fine else "batches.meta.txt"
        (folder / file).write_bytes(b"\n".join(classes) + b"\n\n")
    return {split: (np.concatenate(tables), labels) for split, (tables, labels) in held.items()}


@pytest.mark.parametrize("form", ["folder", "above", "archive"])
@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar(tmp_path, capsys, kind, fine, form):
    name = "cifar-100-" if fine else "cifar-10-batches-"
    tail = kind if fine else {"python": "py", "binary": "bin"}[kind]
    folder = tmp_path / f"{name}{tail}"
    expected = cifar(folder, kind, fine)
    place = {"folder": folder, "above": tmp_path}.get(form) or packed(folder, tmp_path / f"{folder.name}.tar.gz")
    splits = images.read(place, held_out=4)
    assert splits.classes == ("cat", "dog", "owl") and splits.shape == (3, 32, 32)
    assert np.array_equal(splits.test.pixels.numpy().reshape(-1, 3072), expected["test"][0])
    assert splits.test.labels.tolist() == expected["test"][1]
    assert len(splits.validation) == 4 and len(splits.train) == len(expected["train"][1]) - 4
    train = {row.tobytes() for row in splits.train.pixels.numpy()}
    assert train < {row.tobytes() for row in expected["train"][0].reshape(-1, 3, 32, 32)}
    told = f"not {'cifar100' if fine else 'cifar10'} as it is published: {len(expected['train'][1])} train images"
    resized = images.read(place, size=16, held_out=4)
    assert resized.shape == (3, 16, 16) and resized.test[0]["pixel_values"].shape == (3, 16, 16)
    assert told in splits.note and capsys.readouterr().err.count(told) == 2  # it was read twice


def test_mnist_with_and_without_gz(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    table = {"train": RANDOM.integers(0, 256, (20, 28, 28), dtype=np.uint8), "t10k": np.zeros((6, 28, 28), np.uint8)}
    for name, pictures in table.items():
        labels = np.arange(len(pictures), dtype=np.uint8) % 3
        body = b"\0\0\x08\x03" + struct.pack(">3I", *pictures.shape) + pictures.tobytes()
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(body))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + struct.pack(">I", len(labels)) + bytes(labels)
        )
    splits = images.read(tmp_path, held_out=5)
    assert splits.shape == (1, 28, 28) and len(splits.train) == 15 and not splits.test.pixels.any()
    whole = [*splits.train.pixels.numpy(), *splits.validation.pixels.numpy()]
    assert {p.tobytes() for p in whole} == {p.tobytes() for p in table["train"]}
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(body[:-9]))
    with pytest.raises(UserError, match="are not 6 x 28 x 28: it is cut short"):
        images.read(raw)


def jpeg(file: Path, grey: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (grey, grey // 2, 9)).save(file, "JPEG")


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_tiny_imagenet(tmp_path, form):
    folder = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(["n02", "n01"]):
        for k in range(4):
            jpeg(folder / "train" / name / "images" / f"{name}_{k}.JPEG", 40 * number + k)
    for k in range(3):
        jpeg(folder / "val" / "images" / f"val_{k}.JPEG", 100 + k)
    (folder / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{k}.JPEG\tn0{1 + k % 2}\t0\t0\t9\t9\n" for k in range(3))
    )
    jpeg(folder / "test" / "images" / "test_0.JPEG", 5)
    splits = images.read(packed(folder, tmp_path / "t.zip") if form == "zip" else folder, held_out=2)
    assert splits.classes == ("n01", "n02") and splits.test.labels.tolist() == [0, 1, 0] and len(splits.train) == 6
    assert splits.test.mean.tolist() == pytest.approx([0.480, 0.448, 0.398])  # the printed normalisation


def test_the_validation_folder_of_imagenet_is_its_test(tmp_path):
    for split, count in (("train", 8), ("val", 3)):
        for name in ("n01", "n02"):
            for k in range(count):
                jpeg(tmp_path / split / name / f"{k}.JPEG", 9 * k)
    asked = images.read(tmp_path, size=16, published="imagenet", held_out=4)
    assert (len(asked.train), len(asked.validation), len(asked.test)) == (12, 4, 6) and "not imagenet" in asked.note
    own = images.read(tmp_path, size=16, published="cifar10")
    assert len(own.validation) == 6 and "imagenet" not in own.note


WIKI = " \n = A title = \n \n One sentence here . Another one there . \n And a third . \n"


@pytest.mark.parametrize("name", ["wikitext-2-raw-v1.zip", "wikitext-2"])
def test_wikitext(tmp_path, name, capsys):
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.{'raw' if name.endswith('zip') else 'tokens'}").write_text(
            WIKI + f" {split} text . \n"
        )
    place = packed(folder, tmp_path / name) if name.endswith("zip") else folder
    texts, note = blocks.read(place)
    assert texts["train"] == ["= A title =", "One sentence here . Another one there .", "And a third .", "train text ."]
    assert texts["validation"][-1] == "valid text ." and "not wikitext-2" in note and capsys.readouterr().err
    running, _ = paragraphs.read(place)
    assert running["test"] == ["One sentence here . Another one there .", "And a third .", "test text ."]


@pytest.mark.parametrize("form", ["simple-examples.tgz", "data", "simple-examples"])
def test_penn_treebank(tmp_path, form, capsys):
    folder = tmp_path / "simple-examples" / "data"
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (folder / f"ptb.{split}.txt").write_text(f" the {split} <unk> N \n of it \n")
    (folder.parent / "README.txt").write_text("what it is")
    places = {"data": folder, "simple-examples": folder.parent}
    place = places.get(form) or packed(folder.parent, tmp_path / form)
    assert not corpora.is_folder_of_documents(place)
    texts, note = blocks.read(place)
    assert texts["validation"] == ["the valid <unk> N", "of it"]
    assert "not ptb as it is published: 2 train lines for 42,068" in note
    assert note in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "name"), [("gz", "test_2016_flickr"), ("tar", "test_2016_flickr"), ("tar", "test"), ("gz", "test")]
)
def test_multi30k(tmp_path, form, name, capsys):
    for stem, packing in (("train", "training"), ("val", "validation"), (name, "mmt16_task1_test")):
        with tarfile.open(tmp_path / f"{packing}.tar.gz", "w:gz") if form == "tar" else io.BytesIO() as tarred:
            for side, text in (("de", f"Ein {stem} .\nZwei .\n"), ("en", f"A {stem} .\nTwo .\n")):
                if form == "gz":
                    (tmp_path / f"{stem}.{side}.gz").write_bytes(gzip.compress(text.encode()))
                else:
                    entry = tarfile.TarInfo(f"{stem}.{side}")
                    entry.size = len(text)
                    tarred.addfile(entry, io.BytesIO(text.encode()))
    corpus = parallel.read(tmp_path)
    assert corpus.train.source == ("Ein train .", "Zwei .") and corpus.test.target[0] == f"A {name} ."
    assert "2 test lines for 1,000" in corpus.note and corpus.note in capsys.readouterr().err
    for file in tmp_path.glob("val*"):
        file.unlink()
    with pytest.raises(UserError, match="has train.de and no val.de"):
        parallel.read(tmp_path)


def test_sizes_as_published_are_no_difference(capsys):
    assert published_counts.difference("cifar10", {"train": 50_000, "test": 10_000}) == "" == capsys.readouterr().err


@pytest.mark.parametrize(("name", "model"), [("vision", "resnet"), ("ddpm", "unet"), ("logistic", "softmax")])
def test_every_task_of_images_takes_them(tmp_path, name, model):
    cifar(tmp_path / "c", "binary", False)
    chosen = task.load(name)
    preset = chosen.with_options(
        model, chosen.preset(model, "smoke"), {} if name != "logistic" else {"crop": 12, "pool": 8}
    )
    data = chosen.data(preset, str(tmp_path / "c"))
    assert len(data.test) == 12 and "not cifar10" in data.note


# --- what means harm -------------------------------------------------------------------------------------------------


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (entry("../../x"), "leads out of the archive"),
        (entry("/etc/x"), "leads out of the archive"),
        (entry("a", tarfile.SYMTYPE, "/etc/passwd"), "a link or a device"),
        (entry("a", tarfile.LNKTYPE, "/etc/passwd"), "a link or a device"),
        (entry("a", tarfile.FIFOTYPE), "a link or a device"),
    ],
)
def test_archives_that_lead_elsewhere_are_refused(tmp_path, member, why):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tarred:
        tarred.addfile(member)
    with pytest.raises(UserError, match=why):
        archives.read_archive(tmp_path / "x.tar.gz", lambda name: True)


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 1000)
    monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 2500)
    zeros = b"\0" * 900
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a", zeros * 2)
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for k in range(3):
            zipped.writestr(f"{k}", zeros)
    # a small file that grows, and several
    for name, grows in (("in.tar.gz", [zeros * 2]), ("within.tar.gz", [zeros] * 4)):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            for k, content in enumerate(map(gzip.compress, grows)):
                member = entry(f"{k}.gz")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for name in ("one.zip", "many.zip", "in.tar.gz", "within.tar.gz"):
        with pytest.raises(UserError, match="none of the data sets"):
            archives.read_archive(tmp_path / name, lambda name: True)
    (tmp_path / "x.gz").write_bytes(gzip.compress(zeros * 2))
    with pytest.raises(UserError, match="grows beyond"):
        archives.read_file(tmp_path / "x.gz")


@pytest.mark.parametrize("content", [b"a\0b\n", b"\n" * 1001])
@pytest.mark.parametrize("suffix", ["raw", "tokens.gz"])
def test_a_papers_text_of_holes_or_empty_lines_is_none(tmp_path, monkeypatch, content, suffix):
    monkeypatch.setattr(published_texts, "MOST_LINES", 1000)
    packed = gzip.compress(content) if suffix.endswith(".gz") else content
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.{suffix}").write_bytes(packed)
    with pytest.raises(UserError, match="wiki.train.* holds NUL characters or more than 1,000 lines"):
        blocks.read(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_without_end_are_not_read(tmp_path, kind):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 1 << 40  # what is read at once, into memory
    with gzip.open(tmp_path / "x.tar.gz", "wb") as packed:
        packed.write(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * (2 << 20))
    with pytest.raises(UserError, match="describes a file in more than 1 MB"):
        archives.read_archive(tmp_path / "x.tar.gz", lambda name: True)


def test_folders_count_among_the_files_of_an_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST", 2)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in "abc":
            tar.addfile(entry(name, tarfile.DIRTYPE))
    with pytest.raises(UserError, match="more than 2 files"):
        archives.read_archive(tmp_path / "x.tar", lambda name: True)


def test_a_damaged_zip_is_one_line_whatever_packed_it(tmp_path):
    for packing in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", packing) as zipped:
            zipped.writestr("a", RANDOM.bytes(3000))
        content = bytearray((tmp_path / "x.zip").read_bytes())
        content[60:600] = bytes(540)
        (tmp_path / "x.zip").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read .*fetch it anew"):
            archives.read_archive(tmp_path / "x.zip", lambda name: True)


def test_a_damaged_archive_is_one_line(tmp_path):
    (tmp_path / "a").write_bytes(RANDOM.bytes(5000))
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a", "a")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "whole.tar.gz").read_bytes()[:-900])
    with pytest.raises(UserError, match="cannot be read .*fetch it anew"):
        archives.read_archive(tmp_path / "cut.tar.gz", lambda name: True)


class Harm:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pickle.dumps({b"data": Harm()}, protocol=2), "it asks for"),
        (pickle.dumps({b"data": np.array([Harm()], dtype=object)}, protocol=2), "not of numbers"),
        (b"cos\nsystem\n(S'echo'\ntR.", "it asks for os.system"),
        (b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.", "it asks for numpy.fromfile"),
        (pickle.dumps([1, 2]), "holds no mapping"),
        (pickle.dumps({b"a": np.zeros(9, np.uint8)}, protocol=2)[:-12], "nothing of it was run"),
        (pickle.dumps({b"a": np.zeros(9, np.uint8)}, protocol=2).replace(b"K\x09\x85", b"K\x7f\x85"), "shape"),
        (b"\x82\x01.", "extension"),
        (pickle.dumps({10**5000: 1}), "nothing of it was run"),
        (
            b"c_codecs\nencode\nq\0X\x10\0\0\0" + b"a" * 16 + b"\x85q\1](" + b"h\0h\1R" * 99 + b"e.",
            "more bytes than it has",
        ),
        (b"c_codecs\nencode\n}X\x04\0\0\0leftJ\xff\xff\xff\x7fsb.", "it changes what it names"),
    ],
)
def test_pickles_of_strangers_run_nothing(content, why):
    with pytest.raises(UserError, match=why):
        unpickled.read(content, "data_batch_1")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_millions_of_parts_is_not_read(monkeypatch, protocol):
    monkeypatch.setattr(unpickled._Parts, "left", 1000)
    with pytest.raises(UserError, match="it is made of more than"):
        unpickled.read(pickle.dumps({"labels": [None] * 2000}, protocol), "x")


def test_a_set_says_little_of_its_files(tmp_path, monkeypatch):
    cifar(tmp_path / "c", "binary", False)
    monkeypatch.setattr("hf_optim.tasks.data.published_images.LARGEST_NOTES", 9)
    with pytest.raises(UserError, match="batches.meta.txt has more than"):
        images.read(tmp_path / "c", size=16)


def test_an_array_that_nothing_fills_is_none():
    content = b"\x80\2}X\4\0\0\0datacnumpy.core.multiarray\n_reconstruct\n)\x81s."
    assert unpickled.read(content, "data_batch_1") == {"data": None}


#: a tuple of itself, sixty times over: nobody could hash it, or write it down
ENDLESS = b"X\x01\x00\x00\x00xq\x00" + b"".join(b"h%b\x86q%b" % (bytes([n]), bytes([n + 1])) for n in range(60))


@pytest.mark.parametrize(
    "content",
    [b"}" + ENDLESS + b"K\x01s.", b"}(" + ENDLESS + b"K\x01u.", b"(" + ENDLESS + b"K\x01d.", b"(" + ENDLESS + b"\x91."],
)
def test_pickles_of_strangers_look_nothing_up_for_ever(content):
    with pytest.raises(UserError, match="nothing of it was run"):
        unpickled.read(content, "data_batch_1")


def test_a_label_of_thousands_of_digits_is_none(tmp_path):
    cifar(tmp_path / "c", "python", False)
    batch = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10**5000]}
    (tmp_path / "c" / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UserError, match="no batch of CIFAR"):
        images.read(tmp_path / "c", size=16)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_arrays_are_read_as_numpy_reads_them(protocol):
    given = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "f": np.asfortranarray(np.eye(3)),
        "n": [1, -2],
        "s": b"x",
    }
    read = unpickled.read(pickle.dumps(given, protocol=protocol), "x")
    assert all(np.array_equal(read[key], given[key]) for key in ("a", "f")) and read["n"] == [1, -2]
