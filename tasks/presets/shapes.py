"""Width and depth of a GPT-2 or Llama of about so many parameters, and what they cost; plain arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hf_optim.core.wording import both
from hf_optim.errors import UserError

#: the options that `parameters` decides
DECIDES = {
    "gpt2": ("n_embd", "n_layer", "n_head", "initializer_range"),
    "llama": (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "initializer_range",
    ),
}  # fmt: skip
#: width over depth that is aimed at where several shapes fit; GPT-2's own sizes have 64 and 43
ASPECT = 48
CLOSE = 0.06  # shapes within this share of the count that is asked for are equally good
DEPTHS = range(2, 65)


def check(model: str) -> None:
    """Raise a UserError for a model without such a rule: its options may hold none of what the others are asked."""
    if model not in DECIDES:
        raise UserError(f"options: parameters chooses the shape of {both(DECIDES)}, not of {model!r}")


def options(model: str, parameters: int, vocabulary: int, block: int, tied: bool) -> dict[str, Any]:
    """The values of the configuration of `model` with about so many parameters, embeddings included.

    Among the shapes within 6% of the count (else the nearest one) the one whose width over depth is nearest to 48, at
    least two layers deep. The initial deviation is GPT-2's 0.02 at its width of 768 and falls with the root of the
    width.

    Args:
        parameters: the count that is aimed at.
        vocabulary: entries of the tokenizer.
        block: positions, which GPT-2 has an embedding for.
        tied: whether the output layer is the embedding.

    Raises:
        UserError: a model without such a rule, or a count that the embedding alone exceeds.
    """
    check(model)
    if isinstance(parameters, bool) or not isinstance(parameters, int) or parameters < 1:
        raise UserError(f"options: parameters must be a whole number of at least 1, got {parameters!r}")
    candidates = [
        (count(model, shape, vocabulary, block, tied) / parameters - 1, width / depth, shape)
        for depth in DEPTHS
        for width in _widths()
        for shape in [_shape(model, width, depth)]
    ]
    error, _, best = min(
        candidates,
        key=lambda candidate: (
            max(abs(candidate[0]), CLOSE),
            max(candidate[1] / ASPECT, ASPECT / candidate[1]),
            abs(candidate[0]),
        ),
    )
    if abs(error) > 0.25:
        least = min(count(model, shape, vocabulary, block, tied) for _, _, shape in candidates)
        raise UserError(
            f"options: no {model} with a vocabulary of {vocabulary} has about {parameters} parameters "
            f"(the smallest has {least}): ask for more, or for a smaller vocabulary"
        )
    return best


def count(model: str, values: Mapping[str, Any], vocabulary: int, block: int, tied: bool) -> int:
    """How many parameters the configuration `values` has."""
    if model == "gpt2":
        width, depth = values["n_embd"], values["n_layer"]
        inside = depth * (12 * width**2 + 13 * width) + 2 * width + block * width
    else:
        width, depth = values["hidden_size"], values["num_hidden_layers"]
        inside = depth * (4 * width**2 + 3 * width * values["intermediate_size"] + 2 * width) + width
    return int(inside + vocabulary * width * (1 if tied else 2))


def flops(model: str, values: Mapping[str, Any], parameters: int, block: int) -> int:
    """Of training on one token: 6 a parameter, and 12 x layers x width x block for the attention's own products
    (Chowdhery et al. 2022, Appendix B).
    """
    width, depth = (values["n_embd"], values["n_layer"]) if model == "gpt2" else (
        values["hidden_size"], values["num_hidden_layers"],
    )  # fmt: skip
    return int(6 * parameters + 12 * depth * width * block)


def _widths() -> Iterator[int]:
    """Multiples of 4 up to 64, of 8 up to 256, of 64 beyond: heads of 64, and few of even size below."""
    yield from range(4, 64, 4)
    yield from range(64, 256, 8)
    yield from range(256, 4097, 64)


def _heads(width: int) -> int:
    return 2 if width < 64 else 4 if width < 256 else width // 64


def _shape(model: str, width: int, depth: int) -> dict[str, Any]:
    deviation = round(0.02 * (768 / width) ** 0.5, 4)
    if model == "gpt2":
        shape = {"n_embd": width, "n_layer": depth, "n_head": _heads(width), "initializer_range": deviation}
        return {**shape, "activation_function": "gelu_pytorch_tanh"}  # GPT-2's own function, in one kernel
    return {
        "hidden_size": width,
        "intermediate_size": round(width / 3) * 8,
        "num_hidden_layers": depth,
        "num_attention_heads": _heads(width),
        "num_key_value_heads": _heads(width),
        "initializer_range": deviation,
    }
