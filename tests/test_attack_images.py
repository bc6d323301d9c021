"""Pictures of strangers: what takes minutes to decode, what is no content, and what is not told from others."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attack_parts import command
from PIL import Image

from hf_optim.errors import UserError
from hf_optim.tasks.data import image_sets, images
from hf_optim.tasks.data.image_sets import identity, picture


def encoded(pixels: np.ndarray, kind: str = "PNG", **how: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **how)
    return content.getvalue()


def run_lengths(side: int) -> bytes:
    """A black BMP of 8 bits and run lengths."""
    line = b"".join(bytes([min(255, side - at), 0]) for at in range(0, side, 255))
    body = (line + bytes(2)) * side + b"\0\1"
    offset = 14 + 40 + 1024
    told = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + told + bytes(1024) + body


def test_what_pillow_decodes_in_python_is_small() -> None:
    """A parquet file of 2 kB took 40 minutes."""
    assert picture("here", run_lengths(64)).shape == (64, 64, 3)
    with pytest.raises(UserError, match="here: Pillow decodes a BMP such as this in Python, 1100 x 1100 pixels"):
        picture("here", run_lengths(1100))
    plain = encoded(np.zeros((1100, 1100), np.uint8), "BMP")
    assert picture("here", plain).shape == (1100, 1100, 1)


def test_a_jpeg_has_no_scans_without_end() -> None:
    """Each is of some 200 bytes, and goes over all of its pixels."""
    honest = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG", progressive=True)
    assert 5 < honest.count(b"\xff\xda") < 20 and picture("here", honest).shape == (64, 64, 3)
    last = honest.rindex(b"\xff\xda")
    with pytest.raises(UserError, match=r"here: a JPEG of 1,\d\d\d scans"):
        picture("here", honest[:last] + honest[last:-2] * 1000 + honest[-2:])


@pytest.mark.parametrize("name", ["train/a/hole.png", "train.csv"])
def test_holes_are_no_pictures(tmp_path: Path, name: str) -> None:
    """They were read whole, as often as the memory held them."""
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "0.png").write_bytes(encoded(np.zeros((4, 4), np.uint8)))
    (tmp_path / "train.csv").write_text("image,label\ntrain/a/0.png,0\n") if name.endswith("csv") else None
    with (tmp_path / name).open("ab") as file:
        file.truncate(3 << 30)
    with pytest.raises(UserError, match=f"{Path(name).name} says to have 3 GB and is mostly holes"):
        images.read(tmp_path, "label")


def test_splits_that_number_their_classes_otherwise_are_refused(tmp_path: Path) -> None:
    """What one split called dark the other called light, and accuracy was of the wrong ones."""
    for split, names in (("train", ["dark", "light"]), ("test", ["light", "dark"])):
        table = pa.table({"image": [encoded(np.full((4, 4), i, np.uint8)) for i in range(20)], "label": [0, 1] * 10})
        told = json.dumps({"info": {"features": {"label": {"names": names}}}})
        pq.write_table(table.replace_schema_metadata({"huggingface": told}), tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match=r"test.parquet numbers its classes otherwise than the splits before it"):
        images.read(tmp_path, "label")


def test_pictures_are_told_from_others_of_their_names_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs on other pixels counted as pairs."""

    def told(value: int) -> str:
        for at in range(8):
            (tmp_path / f"{at}.bmp").write_bytes(encoded(np.full((8, 8), value + at, np.uint8), "BMP"))
        return identity([("here", tmp_path / f"{at}.bmp", 0) for at in range(8)])

    first = told(0)
    assert told(1) != first == told(0)
    os.utime(tmp_path / "0.bmp", (0, 0))
    assert told(0) == first  # a copy is the same data
    monkeypatch.setattr(image_sets, "IDENTIFIED", 2 * (tmp_path / "0.bmp").stat().st_size)
    assert told(1) != told(0) != first  # of more, some are read


def test_folders_without_end_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = tmp_path
    for _ in range(50):
        deep = deep / "a"
    deep.mkdir(parents=True)
    (deep / "x.txt").write_text("words")
    (tmp_path / "y.txt").write_text("words")
    given = ("--size", "smoke", "--optimizer", "adamw", "--steps", "2", "--output", tmp_path / "run")
    code, _, err = command(capsys, "train", "--task", "lm", "--data", tmp_path, *given)
    assert code == 2 and "holds folders more than 40 deep" in err


def test_a_tiny_imagenet_without_its_pictures_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(UserError, match="data: .* has no folder train: fetch it anew"):
        images.read(tmp_path, "label")
