"""What turns images into the features that FID, KID and the Inception score compare.

The published figures come from one Inception network, whose weights are a file of 90 MB. Where it is not at hand a
small CNN, trained on the labels of the data at hand, stands in: it ranks images of that data sensibly, but its figures
can be compared only among each other. So every figure's name says whose it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from hf_optim.core import extras
from hf_optim.errors import UserError
from hf_optim.experiment import saved_files
from hf_optim.tasks.data import cache

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
BATCH = 256


class Extractor(Protocol):
    """`suffix` ends the names of the figures ("" for the published ones); `about` says in a line what it is."""

    suffix: str
    about: str

    def __call__(self, pixels: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, D] and class logits [N, K], float32 on the CPU, of uint8 images [N, channels, height, width]."""
        ...


class CNN(nn.Module):
    """Three convolutions, the mean over all positions (64 features), and a linear classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 16, 32, 64)
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(b))
            for a, b, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for convolution in self.convolutions:
            images = functional.silu(convolution(images))
        features = images.mean(dim=(2, 3))
        return features, self.classifier(features)


def _scaled(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


@dataclass
class SmallCNN:
    """The stand-in: a `CNN` trained here, see `small_cnn`."""

    network: CNN
    about: str
    suffix: str = "_small_cnn"

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        network = self.network.to(device)
        parts = [network(_scaled(part.to(device))) for part in pixels.split(BATCH)]
        return tuple(torch.cat(values).cpu() for values in zip(*parts, strict=True))  # type: ignore[return-value]


def small_cnn(
    pixels: torch.Tensor, labels: torch.Tensor, classes: int, held_out: tuple[torch.Tensor, torch.Tensor]
) -> SmallCNN:
    """The stand-in for these images: the same weights whatever the run's seed, and kept in the cache.

    Args:
        pixels, labels: the whole train split: uint8 [N, channels, height, width] and int64 [N].
        classes: how many labels there are.
        held_out: such pixels and labels that it is judged on, for `about`.
    """
    digest = hashlib.sha256(f"cnn-1 {tuple(pixels.shape)} {classes}".encode())
    digest.update(pixels.contiguous().numpy().tobytes())
    digest.update(labels.contiguous().numpy().tobytes())
    name = f"extractor-{digest.hexdigest()[:32]}.safetensors"

    import safetensors
    import safetensors.torch

    network = CNN(pixels.shape[1], classes)
    content = cache.read(name)
    try:
        if content is None:
            raise ValueError
        network.load_state_dict(safetensors.torch.load(content))
    except (ValueError, RuntimeError, safetensors.SafetensorError):  # not there, or damaged
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = _train(CNN(pixels.shape[1], classes), pixels, labels)
        content = safetensors.torch.save(network.state_dict())
        cache.keep(name, content)
    network.eval().requires_grad_(False)
    with torch.no_grad():
        parts = [network(_scaled(part))[1].argmax(dim=1) for part in held_out[0].split(BATCH)]
    right = (torch.cat(parts) == held_out[1]).float().mean().item()
    mark = hashlib.sha256(content).hexdigest()[:8]
    about = f"small_cnn: a CNN trained on the train split's labels ({right:.0%} of validation right, weights {mark})"
    return SmallCNN(network, about)


def _train(network: CNN, pixels: torch.Tensor, labels: torch.Tensor, steps: int = 500, batch: int = 64) -> CNN:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    with torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randint(len(pixels), (batch,))
            loss = functional.cross_entropy(network(_scaled(pixels[chosen]))[1], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


class Inception:
    """The network of the published figures, by torch-fidelity, with the weights of `file`."""

    suffix = ""

    def __init__(self, file: Path) -> None:
        with extras.needed("inception", "diffusion"):
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            saved_files.check(file)
            stored = torch.load(file, map_location="cpu", weights_only=True)
            if tuple(stored["fc.weight"].shape) != (1008, 2048):
                raise UserError(f"inception: {file} holds another network's weights: {_how()}")
            with saved_files.only_weights():  # torch-fidelity reads the file again, and takes whatever it names
                self.network = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
                )
        except UserError:
            raise
        except Exception as error:  # whatever torch says of a file that holds something else
            raise UserError(f"inception: {file} is no file of weights ({type(error).__name__}): {_how()}") from error
        mark = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        self.about = f"Inception v3 of the published figures (weights {mark})"

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        network: Any = self.network.to(device)
        colour = pixels if pixels.shape[1] == 3 else pixels.expand(-1, 3, -1, -1)
        parts = [network(part.to(device)) for part in colour.split(BATCH)]
        return tuple(torch.cat(values).cpu() for values in zip(*parts, strict=True))  # type: ignore[return-value]


def _how() -> str:
    return f"download {INCEPTION_URL} and give it as --model.inception PATH"


def inception(place: str) -> Inception:
    """The Inception network with the weights of a path, or for "cache" those of torch's own download folder.

    Raises:
        UserError: the file is not there, or holds something else; says how to get it.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE if place == "cache" else Path(place)
    if not file.is_file():
        where = f"torch's cache ({file.parent})" if place == "cache" else str(file)
        raise UserError(
            f"inception: the weights for FID and the Inception score are not at {where}: {_how()}"
            " (or --model.inception none for figures of the small CNN alone)"
        )
    return Inception(file)
