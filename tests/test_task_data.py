"""Reading images: the embedded sets, one's own files, and what is said of broken ones."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_optim.errors import UserError
from hf_optim.experiment.task import load
from hf_optim.tasks.data.images import read

TASK = load("vision")
SMALL = TASK.preset("mlp", "small")


def png(shade: int, size=(6, 5), mode: str = "L") -> bytes:
    pixels = np.random.default_rng(shade).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def write(path, images, labels, column: str = "label") -> None:
    pq.write_table(pa.table({"image": [{"bytes": image, "path": None} for image in images], column: labels}), path)


def test_embedded_digits() -> None:
    data = TASK.data(SMALL, None)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3500, 500, 1000]
    assert data.facts["shape"] == (1, 28, 28) and len(data.facts["classes"]) == 10
    assert "subset" in data.note and len(data.fingerprint) == 64
    batch = data.train.__getitems__(range(3500))
    assert batch["pixel_values"].dtype == torch.float32 and batch["labels"].dtype == torch.int64
    assert abs(batch["pixel_values"].mean().item()) < 1e-4 and batch["pixel_values"].std().item() == pytest.approx(
        1, abs=1e-3
    )
    assert torch.equal(data.train[7]["pixel_values"], batch["pixel_values"][7])
    # The test split is normalised with train's figures, not its own.
    assert abs(data.test.__getitems__(range(1000))["pixel_values"].mean().item()) > 1e-4


def test_embedded_emoji_has_coarse_and_fine_labels() -> None:
    coarse, fine = TASK.data(SMALL, "emoji"), TASK.data(SMALL, "emoji-fine")
    assert coarse.facts["shape"] == (3, 32, 32)
    assert (len(coarse.facts["classes"]), len(fine.facts["classes"])) == (9, 98)
    assert coarse.fingerprint != fine.fingerprint
    for name in TASK.models:
        model = TASK.model(name, TASK.preset(name, "smoke"), coarse)
        batch = coarse.test.__getitems__([0, 1])
        assert model(**batch).logits.shape == (2, 9)


def test_own_parquet_csv_and_folders_agree(tmp_path) -> None:
    images, labels = [png(i) for i in range(40)], [i % 2 for i in range(40)]
    write(tmp_path / "one.parquet", images, labels)
    (tmp_path / "table").mkdir()
    (tmp_path / "folders").mkdir()
    lines = ["image,label"]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "table" / f"{i}.png").write_bytes(image)
        lines.append(f"{i}.png,{label}")
        folder = tmp_path / "folders" / "train" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02}.png").write_bytes(image)
    (tmp_path / "table" / "train.csv").write_text("\n".join(lines) + "\n")
    parquet, table, folders = read(tmp_path / "one.parquet"), read(tmp_path / "table"), read(tmp_path / "folders")
    assert parquet.fingerprint == table.fingerprint
    assert (len(parquet.train), len(parquet.validation), len(parquet.test)) == (32, 4, 4)
    assert "taken out of train" in parquet.note and folders.classes == ("class0", "class1")
    assert read(tmp_path / "one.parquet").fingerprint == parquet.fingerprint  # always the same split
    assert TASK.data(SMALL, str(tmp_path / "one.parquet")).name == "one.parquet"


def test_a_colour_image_among_grey_ones_makes_all_three_channels(tmp_path) -> None:
    write(
        tmp_path / "train.parquet",
        [png(i, mode="RGBA" if i == 3 else "L") for i in range(30)],
        [i % 3 for i in range(30)],
    )
    write(tmp_path / "test.parquet", [png(i) for i in range(5)], [0, 1, 2, 0, 1])
    assert read(tmp_path).shape == (3, 5, 6)


GOOD = [png(i) for i in range(20)]
LABELS = [i % 2 for i in range(20)]


@pytest.mark.parametrize(
    ("images", "labels", "column", "message"),
    [
        (GOOD, LABELS, "target", r"has no column 'label'; it has 'image', 'target'"),
        ([*GOOD[:19], GOOD[0][:40]], LABELS, "label", r"row 19: not a readable image"),
        ([*GOOD[:19], b"text"], LABELS, "label", r"row 19: not a readable image"),
        ([*GOOD[:19], png(1, (9, 5))], LABELS, "label", r"differ in size: 6x5 .*row 0\) and 9x5 .*row 19\): resize"),
        (GOOD, [0] * 20, "label", "one class only"),
        (GOOD, [*LABELS[:19], 7], "label", r"row 19: label 7 is not one of 0 to 2"),
        (GOOD, [*LABELS[:19], -1], "label", r"row 19: label -1 is not one of"),
        (GOOD, [*LABELS[:19], None], "label", r"row 19: image or label is empty"),
        ([], pa.array([], pa.int64()), "label", r"the train split is empty"),
        (GOOD[:2], LABELS[:2], "label", "too few"),
    ],
)
def test_broken_tables_say_where_and_what_to_do(tmp_path, images, labels, column, message) -> None:
    write(tmp_path / "train.parquet", images, labels, column)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_broken_sources(tmp_path) -> None:
    for path, message in ((tmp_path / "no", "no such file or folder"), (tmp_path, "no images in")):
        with pytest.raises(UserError, match=message):
            read(path)
    write(tmp_path / "test.parquet", GOOD, LABELS)
    with pytest.raises(UserError, match="no train split"):
        read(tmp_path)
    write(tmp_path / "train.parquet", GOOD, ["a" if label else "b" for label in LABELS])
    with pytest.raises(UserError, match="some labels are numbers and some are names"):
        read(tmp_path)
    write(tmp_path / "test.parquet", GOOD[:1], ["c"])
    with pytest.raises(UserError, match="label 'c' does not occur in the train split"):
        read(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read(tmp_path)
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.csv").write_text("image,label\nnone.png,0\n")
    with pytest.raises(UserError, match=r"train.csv, line 2: no such image file"):
        read(tmp_path)


def test_one_image_of_another_size_in_another_split(tmp_path) -> None:
    write(tmp_path / "train.parquet", GOOD, LABELS)
    write(tmp_path / "validation.parquet", GOOD, LABELS)
    write(tmp_path / "test.parquet", [png(0, (7, 7))], [0])
    with pytest.raises(UserError, match=r"differ in size: 6x5 .*train.*7x7 .*test"):
        read(tmp_path)
