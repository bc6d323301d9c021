"""Images for a generative model: in [-1, 1], at one resolution, and with fixed noise where they are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import Dataset

from hf_optim.errors import UserError
from hf_optim.experiment.files import whole
from hf_optim.tasks.data.image_sets import Images
from hf_optim.tasks.data.images import Splits, assemble


class Pictures(Dataset[dict[str, torch.Tensor]]):
    """`pixels` uint8 [N, channels, height, width], given as `pixel_values` float32 in [-1, 1]."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch."""
        return {"pixel_values": self.pixels[torch.as_tensor(indices)].float() / 127.5 - 1}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


class NoisedPictures(Pictures):
    """And `noise` and `timesteps`, drawn from a generator of each image's own number.

    So the loss of an evaluation is the same number whatever the batch size, the processes, the device and the run.
    """

    def __init__(self, pixels: torch.Tensor, timesteps: int) -> None:
        super().__init__(pixels)
        self.timesteps = timesteps

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        generator = torch.Generator()
        noise, timesteps = [], []
        for index in indices:
            generator.manual_seed(int(index))
            timesteps.append(torch.randint(self.timesteps, (), generator=generator))
            noise.append(torch.randn(self.pixels.shape[1:], generator=generator))
        return {
            **super().__getitems__(indices),
            "noise": torch.stack(noise),
            "timesteps": torch.stack(timesteps),
        }


def pixels_of(splits: Splits, resolution: int) -> dict[str, torch.Tensor]:
    """The images of each split, uint8 [N, channels, resolution, resolution]; see `resized`."""
    pixels = {}
    for name, part in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        assert isinstance(part, Images)  # they were decoded when they were read
        pixels[name] = resized(part.pixels, resolution)
    return pixels


def resized(pixels: torch.Tensor, resolution: int) -> torch.Tensor:
    """The middle square of uint8 images [N, channels, height, width], scaled down to `resolution`, smoothly.

    Raises:
        UserError: they are smaller than that.
    """
    height, width = pixels.shape[2:]
    side = min(height, width)
    if side < resolution:
        raise UserError(
            f"data: images of {width}x{height} are smaller than the model's {resolution}x{resolution}: "
            "give larger ones, or set --model.resolution"
        )
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[:, :, top : top + side, left : left + side]
    if side == resolution:
        return square.contiguous()
    parts = [
        functional.interpolate(part.float(), (resolution, resolution), mode="bilinear", antialias=True)
        for part in square.split(1024)
    ]
    return torch.cat(parts).round_().clamp_(0, 255).to(torch.uint8)


def from_hub(repository: str, image: str, label: str, held_out: int) -> Splits:
    """A labelled data set of the Hub, decoded in memory."""
    import datasets

    from hf_optim.tasks.data import hub

    parts = hub.load(repository, key="data")
    by_split: dict[str, list[Any]] = {}
    for split in ("train", "validation", "test"):
        if split in parts:
            rows = parts[split].cast_column(image, datasets.Image(decode=False))
            by_split[split] = [
                (f"{repository}, {split} row {i}", row[image]["bytes"], row[label]) for i, row in enumerate(rows)
            ]
    return assemble(by_split, parts["train"].features[label].names, held_out=held_out)


def save_grid(pixels: torch.Tensor, folder: Path, name: str, columns: int = 8, side: int = 32) -> None:
    """Write uint8 images [N, channels, height, width] as one PNG, `name` ("a/b.png") below `folder`, row by row, small
    ones enlarged to about `side`."""
    from PIL import Image

    scale = max(1, side // pixels.shape[3])
    tiles = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1)
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    canvas = torch.zeros(rows, height + 1, columns, width + 1, channels, dtype=torch.uint8)
    for number, tile in enumerate(tiles):
        canvas[number // columns, :height, number % columns, :width] = tile
    picture = canvas.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    with whole(folder, name) as part:
        Image.fromarray((picture[:, :, 0] if channels == 1 else picture).numpy()).save(part, "PNG")
