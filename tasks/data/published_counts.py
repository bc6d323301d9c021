"""What is known of the papers' data sets: how many samples, of what form. Data that are read are compared with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from hf_optim.core.safe_text import terminal


@dataclass(frozen=True)
class KnownImages:
    """A labelled set of images: samples of train and test as distributed, [channels, height, width], classes."""

    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """The mean and deviation of each channel, of pixels in [0, 1], that papers print."""


@dataclass(frozen=True)
class KnownText:
    """A text or parallel text: lines of each split as distributed, and about how many words and ALBERT's pairs the
    train split has.
    """

    train: int
    validation: int
    test: int
    words: int
    pairs: int


#: the test labels of Tiny-ImageNet and ImageNet are not public: their validation split is the test, as in the papers
VALIDATION_IS_TEST = ("tiny-imagenet", "imagenet")
# MNIST: LeCun et al. 1998; CIFAR: Krizhevsky 2009; Tiny-ImageNet: its folders; ImageNet: Russakovsky et al. 2015, whose
# images differ in size: the shape is that of the papers' crops.
IMAGES = {
    "digits": KnownImages(3500, 1000, (1, 28, 28), 10),
    "emoji": KnownImages(3048, 468, (3, 32, 32), 9),
    "emoji-fine": KnownImages(3048, 468, (3, 32, 32), 98),
    "mnist": KnownImages(60_000, 10_000, (1, 28, 28), 10),
    "cifar10": KnownImages(50_000, 10_000, (3, 32, 32), 10),
    "cifar100": KnownImages(50_000, 10_000, (3, 32, 32), 100),
    "tiny-imagenet": KnownImages(100_000, 10_000, (3, 64, 64), 200, ((0.480, 0.448, 0.398), (0.277, 0.269, 0.282))),
    "imagenet": KnownImages(1_281_167, 50_000, (3, 224, 224), 1000),
}
# The lines are those of the Hub's cards of `wikitext`, `ptb_text_only` and `bentrevett/multi30k`; words of WikiText are
# of Merity et al. 2016 (Table 1), of the Penn Treebank of Mikolov et al. 2010.
TEXTS = {
    "wikitext-2": KnownText(36_718, 3_760, 4_358, 2_088_628, 17_000),
    "wikitext-103": KnownText(1_801_350, 3_760, 4_358, 103_227_021, 850_000),
    "ptb": KnownText(42_068, 3_370, 3_761, 929_589, 0),
    "multi30k": KnownText(29_000, 1_014, 1_000, 345_000, 0),
}


def difference(name: str, counts: Mapping[str, int]) -> str:
    """A line if the samples or lines of splits are not those of the published set `name`, else "". It is told on
    stderr, too.
    """
    known: KnownImages | KnownText = IMAGES[name] if name in IMAGES else TEXTS[name]
    other = {split: count for split, count in counts.items() if getattr(known, split, count) != count}
    if not other:
        return ""
    unit = "images" if name in IMAGES else "lines"
    told = ", ".join(f"{count:,} {split} {unit} for {getattr(known, split):,}" for split, count in other.items())
    line = f"not {name} as it is published: {told}"
    print(terminal(f"data: {line}"), file=sys.stderr)
    return line
