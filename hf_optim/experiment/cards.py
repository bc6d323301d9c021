"""GPUs by name: the operations a second that their makers state, dense, and their memory."""

from __future__ import annotations

from dataclasses import dataclass

from hf_optim.core.validate import closest
from hf_optim.errors import UserError

#: the share of the stated operations that training reaches, about: large matrices more, small images and convolutions
#: of few channels far less
UTILISATION = 0.3
#: seconds that a step takes at least, to start its kernels
LEAST_STEP = 0.01


@dataclass(frozen=True)
class Card:
    """Operations a second in each precision that it has, in units of 10^12, and GB of 10^9 bytes."""

    name: str
    tera: dict[str, float]
    gigabytes: float

    def operations(self, precision: str) -> float:
        """Operations a second that training in `precision` reaches, about.

        Raises:
            UserError: the card does not have it.
        """
        if precision not in self.tera:
            raise UserError(f"--card: {self.name} does not compute in {precision}; it has {', '.join(self.tera)}")
        return UTILISATION * 1e12 * self.tera[precision]


def _card(name: str, gigabytes: float, fp32: float, tf32: float | None, bf16: float | None, fp16: float) -> Card:
    every = {"fp32": fp32, "tf32": tf32, "bf16": bf16, "fp16": fp16}
    return Card(name, {key: value for key, value in every.items() if value is not None}, gigabytes)


# As vendors' and makers' tables quote NVIDIA's datasheets of T4, V100 (SXM2), A10, L4, L40S, A100, H100 (SXM) and H200,
# where the tensor cores' numbers of the last five are half of those with sparsity, and its whitepapers on GA102 and Ada
# for the two RTX cards, products of half precision added up in float32.
CARDS = {
    card.name.lower(): card
    for card in (
        _card("T4", 16, 8.1, None, None, 65),
        _card("V100", 16, 15.7, None, None, 125),
        _card("RTX 3090", 24, 35.6, 35.6, 71, 71),
        _card("RTX 4090", 24, 82.6, 82.6, 165, 165),
        _card("A10", 24, 31.2, 62.5, 125, 125),
        _card("L4", 24, 30.3, 60, 121, 121),
        _card("L40S", 48, 91.6, 183, 362, 362),
        _card("A100", 40, 19.5, 156, 312, 312),
        _card("A100 80GB", 80, 19.5, 156, 312, 312),
        _card("H100", 80, 67, 495, 989, 989),
        _card("H200", 141, 67, 495, 989, 989),
    )
}


def find(name: str) -> Card:
    """The card called `name`, in any case; a `UserError` names those that are known."""
    card = CARDS.get(" ".join(name.lower().replace("-", " ").split()))
    if card is None:
        known = [card.name for card in CARDS.values()]
        raise UserError(f"--card: {name!r} is not known{closest(name, known)}; known: {', '.join(known)}")
    return card
