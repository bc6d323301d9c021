"""Random changes of images in training, a batch at a time in torch.

What happens to a sample depends on the run's seed, the epoch and the sample's position in the data set, and on nothing
else. So every optimizer of a comparison sees the same pictures, whatever random numbers it draws itself; a resumed run
goes on with those it would have seen, and several processes see what one would.

    crop: 4             pad with so many black pixels on every side, cut the old size out at random
    flip: true          mirror left and right, for every second sample
    rotate: 15          turn by up to so many degrees, black outside
    jitter: 0.2         brightness, contrast and saturation times 1 +- so much, in this order
    resized_crop: [.08, 1]  cut out a share of the area between these two, 3:4 to 4:3, and resize it (option image_size)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn import functional as F

from hf_optim.core.validate import closest
from hf_optim.errors import UserError

DRAWS = 9
"""Random numbers of a sample: the crop's place (2), flip, angle, jitter (3), area and proportions."""
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augment:
    """See the module."""

    crop: int = 0
    flip: bool = False
    rotate: float = 0.0
    jitter: float = 0.0
    resized_crop: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: Any) -> Augment:
        """The augmentation of a mapping, checked; a `UserError` says what is wrong with it."""
        valid = [each.name for each in fields(cls)]
        if not isinstance(values, Mapping):
            raise UserError(f"augment: expected a mapping, as {{crop: 4, flip: true}}, got {values!r}")
        for key, value in values.items():
            if key not in valid:
                raise UserError(f"augment: unknown key {key!r}{closest(str(key), valid)}; valid: {', '.join(valid)}")
            if not _LEGAL[key](value):
                raise UserError(f"augment: {key} must be {_WORDS[key]}, got {value!r}")
        area = values.get("resized_crop")
        if area is not None and values.get("crop"):
            raise UserError("augment: crop and resized_crop exclude each other: give one of them")
        return cls(**{**values, "resized_crop": None if area is None else (float(area[0]), float(area[1]))})

    def __call__(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Changed images.

        Args:
            pixels: uint8 [n, channels, height, width].
            draws: [n, DRAWS], uniform in [0, 1).

        Returns: the same shape, uint8, or float32 in [0, 255] after rotation or jitter.
        """
        if self.crop or self.flip:
            pixels = self._crop_and_flip(pixels, draws)
        if self.rotate:
            pixels = self._rotate(pixels.float(), draws[:, 3])
        if self.jitter:
            pixels = self._jitter(pixels.float(), 1 + self.jitter * (2 * draws[:, 4:7] - 1))
        return pixels

    def _crop_and_flip(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        count, _, height, width = pixels.shape
        offsets = (draws[:, :2] * (2 * self.crop + 1)).long()
        rows = offsets[:, :1] + torch.arange(height)
        columns = offsets[:, 1:] + torch.arange(width)
        if self.flip:
            columns = torch.where(draws[:, 2:3] < 0.5, columns.flip(1), columns)
        padded = F.pad(pixels, (self.crop,) * 4).permute(0, 2, 3, 1)
        samples = torch.arange(count)[:, None, None]
        return padded[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    def _rotate(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        angle = (2 * draws - 1) * math.radians(self.rotate)
        cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
        height, width = pixels.shape[2:]
        # affine_grid measures both axes from -1 to 1, so that a turn must take the picture's proportions along.
        first = torch.stack([cos, -sin * (height / width), zero], dim=1)
        second = torch.stack([sin * (width / height), cos, zero], dim=1)
        grid = F.affine_grid(torch.stack([first, second], dim=1), list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, mode="nearest", padding_mode="zeros", align_corners=False)

    @staticmethod
    def _jitter(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)
        pixels = (pixels * brightness).clamp(0, 255)
        grey = _grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
        pixels = ((pixels - grey) * contrast + grey).clamp(0, 255)
        grey = _grey(pixels)
        return ((pixels - grey) * saturation + grey).clamp(0, 255)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """The luminance [n, 1, height, width] of colour pictures; grey ones are their own."""
    if pixels.shape[1] != 3:
        return pixels
    return (pixels * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def draws(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The random numbers [count, DRAWS] of an epoch under the run's seed, drawn beside torch's random state."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch + 1) % 2**63)
    return torch.rand(count, DRAWS, generator=generator)


def box(area: tuple[float, float], draws: torch.Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """The rectangle (left, top, right, bottom) of a resized crop of one picture from its [DRAWS] numbers."""
    down, right, share, proportion = (float(draws[i]) for i in (0, 1, 7, 8))
    surface = (area[0] + share * (area[1] - area[0])) * height * width
    ratio = (4 / 3) ** (2 * proportion - 1)
    wide = min(width, max(1, round(math.sqrt(surface * ratio))))
    high = min(height, max(1, round(math.sqrt(surface / ratio))))
    left, top = int(right * (width - wide + 1)), int(down * (height - high + 1))
    return left, top, left + wide, top + high


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _area(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(_number(each) for each in value)
        and 0 < value[0] <= value[1] <= 1
    )


_LEGAL = {
    "crop": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "flip": lambda value: isinstance(value, bool),
    "rotate": lambda value: _number(value) and 0 <= value <= 180,
    "jitter": lambda value: _number(value) and 0 <= value <= 1,
    "resized_crop": _area,
}
_WORDS = {
    "crop": "a whole number of pixels, 0 or more",
    "flip": "true or false",
    "rotate": "degrees from 0 to 180",
    "jitter": "a share from 0 to 1",
    "resized_crop": "two shares of the area, as [0.08, 1]",
}
