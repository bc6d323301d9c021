"""Images that a model generates, and how they compare with real ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hf_optim.experiment.task import Moment
from hf_optim.tasks.data.pictures import save_grid

if TYPE_CHECKING:
    from hf_optim.tasks.models.ddpm import DDPMModel
    from hf_optim.tasks.models.extractors import Extractor

SEEDS = {"validation": 1, "test": 2}
SHOWN = 64


@dataclass
class Sampling:
    """How many images are generated, and what they are compared with.

    Args:
        count: images of an evaluation, from the same noise every time.
        steps: of DDIM.
        batch: images at a time; a whole batch is one process's, so the images depend on it a little (rounding).
        real: uint8 images [N, channels, height, width] to compare with, of `validation` and of `test`.
        extractors: whose features are compared; each gives FID, KID and the Inception score under names of its own.
    """

    count: int
    steps: int
    batch: int
    real: dict[str, torch.Tensor]
    extractors: tuple[Extractor, ...]
    _known: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)

    def figures(self, model: DDPMModel, moment: Moment) -> dict[str, float]:
        """Generate, write a grid of the first batch (64 of it), and compare; the same figures on every process."""
        from hf_optim.tasks.models.ddpm import batches_of_noise

        mine = []
        for number, noise in batches_of_noise(
            model.config, self.count, self.batch, SEEDS[moment.split], moment.rank, moment.processes
        ):
            pixels = model.generate(noise, self.steps).cpu()
            if number == 0 and moment.folder is not None:
                save_grid(pixels[:SHOWN], moment.folder, f"samples/{moment.split}-{moment.step:06d}.png")
            mine.append((number, [extract(pixels, model.device) for extract in self.extractors]))
        return self._compare(_everyone(mine, moment.processes), moment.split, model.device)

    def _compare(
        self, parts: list[list[tuple[torch.Tensor, torch.Tensor]]], split: str, device: torch.device
    ) -> dict[str, float]:
        from hf_optim.metrics import frechet, inception_score, kid

        figures: dict[str, float] = {}
        for place, extract in enumerate(self.extractors):
            features, logits = (torch.cat([part[place][kind] for part in parts]).numpy() for kind in (0, 1))
            if (place, split) not in self._known:
                self._known[place, split] = extract(self.real[split], device)[0]
            real = self._known[place, split].numpy()
            mean, deviation = inception_score.score(logits)
            end = extract.suffix
            figures |= {
                f"fid{end}": frechet.distance(features, real),
                f"kid{end}": kid.distance(features, real),
                f"is{end}": mean,
                f"is_std{end}": deviation,
            }
        return figures


def _everyone(mine: list[tuple[int, Any]], processes: int) -> list[Any]:
    """What the processes made, in the order of the batches."""
    if processes > 1:
        from accelerate.utils import gather_object

        mine = gather_object(mine)
    return [mine_of for _, mine_of in sorted(mine, key=lambda entry: entry[0])]
