"""Data sets of images that give whole batches: decoded in memory, or decoded when they are asked for."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from hf_optim.errors import UserError
from hf_optim.tasks.data import places
from hf_optim.tasks.data.augment import Augment, box, draws

Row = tuple[str, "bytes | Path | np.ndarray", Any]
"""Where the row stands (for messages), its encoded image, its file or its pixels (see `picture`), and its label."""
Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of each channel, of pixels in [0, 1]."""
IMAGENET_MOMENTS: Moments = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRE = 224 / 256
"""The share of a picture's shorter side that evaluations of ImageNet's models see."""

#: what is decoded, by Pillow alone: for others it starts programs (Ghostscript for EPS); MPO is a JPEG to it
JPEG = "HF_OPTIM_JPEG"  # see `_prepare`
FORMATS = ("PNG", JPEG, "BMP", "GIF", "WEBP", "PPM", "TIFF")
#: of a JPEG, each decoded over all of its pixels; progressive ones have some ten
MOST_SCANS = 200
#: pixels of what Pillow decodes in Python (BMP of run lengths, PPM of other than 255 values), a hundred times slower
MOST_IN_PYTHON = 1 << 20
#: bytes of encoded pictures that are read to tell them from others
IDENTIFIED = 256 << 20

S = TypeVar("S", bound="ImageSet")


class ImageSet(Dataset[dict[str, torch.Tensor]]):
    """Images normalised a batch at a time.

    Args:
        labels: int64 [N].
        mean, std: of a channel, in [0, 1].
    """

    def __init__(self, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.labels, self.mean, self.std = labels, mean, std
        self.scale = (1 / (255 * std)).view(1, -1, 1, 1)
        self.shift = (mean / std).view(1, -1, 1, 1)
        self.augment: Augment | None = None
        self.epoch = 0
        self.seed: int | None = None
        self._drawn: tuple[tuple[int, int], torch.Tensor] | None = None

    def augmented(self: S, augment: Augment) -> S:
        """The same images, changed at random, in another way in every `epoch`."""
        twin = copy.copy(self)
        twin.augment = augment
        return twin

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch: `pixel_values` float32 [n, channels, height, width] and `labels` [n]."""
        chosen = torch.as_tensor(indices)
        numbers = None if self.augment is None else self._draws()[chosen]
        pixels = self.pictures(chosen, numbers)
        if self.augment is not None and numbers is not None:
            pixels = self.augment(pixels, numbers)
        # Pictures of one channel may have the strides of channels-last, which `contiguous` leaves as they are. torch's
        # convolutions would keep to them, and with fewer than 8 channels write beyond their memory (torch 2.14's oneDNN
        # where a processor has no AVX-512).
        values = torch.empty(pixels.shape)
        torch.mul(pixels, self.scale, out=values).sub_(self.shift)
        return {"pixel_values": values, "labels": self.labels[chosen]}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    @abstractmethod
    def pictures(self, chosen: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
        """uint8 [n, channels, height, width]; `numbers` [n, DRAWS] place what is cut out while decoding."""

    def _draws(self) -> torch.Tensor:
        now = (torch.initial_seed() if self.seed is None else self.seed, self.epoch)
        if self._drawn is None or self._drawn[0] != now:
            self._drawn = now, draws(len(self), *now)
        return self._drawn[1]


class Images(ImageSet):
    """Images in memory as bytes: `pixels` uint8 [N, channels, height, width]; the rest as in `ImageSet`."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__(labels, mean, std)
        self.pixels = pixels

    def head(self, count: int) -> Images:
        """The first `count` images, under the same normalisation."""
        return Images(self.pixels[:count], self.labels[:count], self.mean, self.std)

    def pictures(self, chosen: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
        """See `ImageSet`."""
        return self.pixels[chosen]


class EncodedImages(ImageSet):
    """Colour images of any size, decoded and resized to `size` x `size` when they are asked for.

    Args:
        rows: where the images are; read one at a time.
        positions: int64 [N], of this set's images in `rows`.
        size: pixels a side. An evaluation sees the middle 224/256 of the shorter side, as is usual with ImageNet;
            training what `resized_crop` cuts out, if there is one.
        labels, mean, std: as in `ImageSet`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        positions: torch.Tensor,
        labels: torch.Tensor,
        mean: torch.Tensor,
        std: torch.Tensor,
        size: int,
    ) -> None:
        super().__init__(labels, mean, std)
        self.rows, self.positions, self.size = rows, positions, size

    def head(self, count: int) -> EncodedImages:
        """The first `count` images."""
        positions, labels = self.positions[:count], self.labels[:count]
        return EncodedImages(self.rows, positions, labels, self.mean, self.std, self.size)

    def pictures(self, chosen: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
        """See `ImageSet`; decoded by as many threads as there are processors, since Pillow lets go of the GIL, or one
        after the other where several processes read ahead.
        """
        places = self.positions[chosen].tolist()
        each = [None] * len(places) if numbers is None else list(numbers)
        spread = map if get_worker_info() is not None else _pool().map
        arrays = list(spread(self._decoded, [self.rows[place] for place in places], each))
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

    def _decoded(self, row: Row, numbers: torch.Tensor | None) -> np.ndarray:
        from PIL import Image

        pixels = picture(row[0], row[1])
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2))
        area = self.augment.resized_crop if self.augment is not None else None
        if area is not None and numbers is not None:
            cut: tuple[float, ...] = box(area, numbers, image.width, image.height)
        else:
            side = min(image.width, image.height) * CENTRE
            left, top = (image.width - side) / 2, (image.height - side) / 2
            cut = (left, top, left + side, top + side)
        small = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=cut)  # type: ignore[arg-type]
        return np.asarray(small)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1)


def picture(place: str, image: bytes | Path | np.ndarray) -> np.ndarray:
    """uint8 [height, width, 1 or 3] of an encoded image, transparency on white; a `UserError` names its `place`."""
    if isinstance(image, np.ndarray):
        return image
    from PIL import Image

    _prepare()
    try:
        content = image if isinstance(image, bytes) else _content(place, image)
        if content.startswith(b"\xff\xd8\xff") and (scans := content.count(b"\xff\xda")) > MOST_SCANS:
            raise UserError(f"data: {place}: a JPEG of {scans:,} scans, each over all pixels: save it again")
        with Image.open(_Watched(content), formats=FORMATS) as opened:
            slowly = any(tile[0] in Image.DECODERS for tile in opened.tile)  # type: ignore[attr-defined]
            if slowly and opened.width * opened.height > MOST_IN_PYTHON:
                raise UserError(
                    f"data: {place}: Pillow decodes a {opened.format} such as this in Python, {opened.width} x "
                    f"{opened.height} pixels: convert it to PNG first"
                )
            if opened.mode.startswith(("I", "F")):
                raise UserError(
                    f"data: {place}: a {opened.mode} image of more than 8 bits a channel: convert it to 8 bits first"
                )
            if opened.mode in ("1", "L"):
                return np.asarray(opened.convert("L"))[:, :, None]
            if opened.mode != "RGB":
                layered = opened.convert("RGBA")
                return np.asarray(
                    Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
                )
            return np.asarray(opened)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"data: {place}: an image of more pixels than Pillow takes: make it smaller") from error
    except MemoryError as error:
        raise UserError(f"data: {place}: this machine has not the memory to decode this image now") from error
    except Exception as error:  # whatever Pillow says of a damaged file
        raise UserError(f"data: {place}: not a readable image (corrupt or cut short): replace or remove it") from error


def _content(place: str, image: Path) -> bytes:
    if not image.is_file():
        raise UserError(f"data: {place}: no such image file: {image}")
    places.check_file(image)
    return image.read_bytes()


class _Watched(io.BytesIO):
    """An encoded picture that may be read a few times over: all entries of a TIFF's directory may mean the same bytes,
    and Pillow copies them for each.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = 8 * len(content) + (1 << 20)

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("its bytes are meant again and again")
        return content


@functools.cache
def _prepare() -> None:
    """Pillow warns, with lines of its own code, of pictures that are large and not yet too large, of damaged EXIF data
    and of palettes: none changes what is read. In a JPEG's EXIF data, which may be a TIFF as above, it looks for dots
    per inch, which nobody asks for: that is left out.
    """
    from PIL import Image, JpegImagePlugin

    class Jpeg(JpegImagePlugin.JpegImageFile):
        def _read_dpi_from_exif(self) -> None:
            pass

    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.register_open(JPEG, Jpeg, lambda head: head.startswith(b"\xff\xd8\xff"))


class Places(Sequence[str]):
    """Where rows stand, asked for only in messages: the rows of a large set are not read for it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = getattr(self.rows, "place", None)
        return self.rows[index][0] if place is None else place(index)


class HubRows(Sequence[Row]):
    """A split of a data set of the Hub whose image column is not decoded, read one row at a time.

    Args:
        part: a `datasets.Dataset`.
        name: of the data set and split, for messages.
        image, label: its columns.
    """

    def __init__(self, part: Any, name: str, image: str, label: str) -> None:
        import datasets

        self.part, self.name, self.image = part.cast_column(image, datasets.Image(decode=False)), name, image
        self.labels: list[Any] = list(part[label])
        self.fingerprint = str(part._fingerprint)

    def place(self, index: int) -> str:
        """Where a row stands."""
        return f"{self.name} row {index}"

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        held = self.part[int(index)][self.image]
        return self.place(index), held["bytes"] if held["bytes"] is not None else Path(held["path"]), self.labels[index]


def identity(rows: Sequence[Row]) -> str:
    """What tells these encoded images from others: a fingerprint of the Hub, or their bytes; of files beyond
    `IDENTIFIED` in all their names and lengths, and the bytes of some, evenly spread.
    """
    if isinstance(rows, HubRows):
        return rows.fingerprint
    digest = hashlib.sha256()
    files: list[tuple[str, Path]] = []
    total = 0
    for place, image, _ in rows:
        if not isinstance(image, Path):
            digest.update(bytes(image))
        elif image.is_file():
            name = os.fsencode(f"{image.parent.name}/{image.name}")  # which need not be UTF-8
            size = image.stat().st_size
            digest.update(name + f" {size}".encode())
            files.append((place, image))
            total += size
        else:
            raise UserError(f"data: {place}: no such image file: {image}")
    for place, image in files[:: max(1, -(-total // IDENTIFIED))]:
        digest.update(_content(place, image))
    return digest.hexdigest()
