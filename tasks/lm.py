"""Causal language models: GPT-2, Llama and an LSTM from scratch, and the fine-tuning of a checkpoint of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.errors import UserError
from hf_optim.experiment.task import Data, Metric, Preset, Primary, Task
from hf_optim.tasks.presets.lm import SIZE_TABLE

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from hf_optim.tasks.data.blocks import Stream

HERE = Path(__file__).parent / "data"
EMBEDDED = {"wiki": "5,013 paragraphs of English Wikipedia, 412 thousand words, split by article"}
HUB = {
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
#: sets that a preset names and that nobody may hand on: what to do instead
BRING = {
    "ptb": "the Penn Treebank's text on the Hub is behind a script that datasets no longer runs: give a folder with "
    "train.txt, validation.txt and test.txt (one sentence a line) with --data DIR"
}
#: values of a preset's `model` that concern the text; the others are the configuration's
TEXT = ("block", "tokenizer", "vocabulary", "checkpoint")


class CausalLM(Task):
    """See the module; `pretrained` is any causal model that transformers can load, with its own tokenizer."""

    name = "lm"
    title = "Causal language models"
    primary = Primary("test_loss", greater_is_better=False)
    metrics = (
        Metric("perplexity", False),
        Metric("accuracy", True, "share"),
        Metric("bits_per_byte", False, "bits"),
        Metric("unknown", False, "share"),
    )
    models = ("gpt2", "llama", "lstm", "pretrained")
    sizes = SIZE_TABLE
    embedded = EMBEDDED
    label_names = ("labels", "covered")

    def data(self, preset: Preset, source: str | None) -> Data:
        """Blocks of the preset's text, of the embedded one of a name, or of files of your own.

        facts: tokenizer, its fingerprint, vocabulary (entries), block, frequency_loss, bytes of each split.
        """
        values = preset.model.value
        block = _whole(values, "block", 2)
        name = source or preset.data.value
        limit = preset.samples.value if source is None else None
        key: tuple[Any, ...] = (name, source is not None and name not in EMBEDDED, limit, values.get("checkpoint"))
        if "checkpoint" not in values:
            key += (values["tokenizer"], _whole(values, "vocabulary", 3))
        else:
            key += (None, 0)
        streams, tokenizer, note = _streams(*key, _newest(name) + _newest(values.get("checkpoint")))
        from hf_optim.tasks.data import blocks

        count = len(streams["train"].ids)
        if count < block:
            raise UserError(
                f"data: the train split has {count} tokens, fewer than one block of {block}: "
                "bring more text, or set --model.block"
            )
        by_split = {split: blocks.Blocks(stream, block, whole=split != "train") for split, stream in streams.items()}
        mark = blocks.fingerprint(tokenizer)
        facts = {
            "tokenizer": tokenizer,
            "fingerprint": mark,
            "vocabulary": len(tokenizer),
            "block": block,
            "frequency_loss": blocks.frequency_loss(streams["train"], streams["test"], len(tokenizer)),
            "bytes": {split: stream.bytes for split, stream in streams.items()},
        }
        note += f"; predicting each test token by its frequency in train alone: {facts['frequency_loss']:.4f} nats"
        shown = Path(name).resolve().name if source is not None and name not in EMBEDDED else name
        return Data(**by_split, name=shown, fingerprint=_digest(streams, mark, block), note=note, facts=facts)

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """The model for the tokenizer's vocabulary, or the checkpoint's."""
        from hf_optim.tasks.data import blocks

        values = {key: value for key, value in preset.model.value.items() if key not in TEXT}
        tokenizer = data.facts["tokenizer"]
        end = blocks.end_of(tokenizer)
        if name == "pretrained":
            from hf_optim.tasks.models.language import pretrained

            network = pretrained(preset.model.value["checkpoint"], data.facts)
        else:
            shape = {"vocab_size": data.facts["vocabulary"], "bos_token_id": end, "eos_token_id": end}
            if name == "gpt2":
                from transformers import GPT2Config as Config

                shape["n_positions"] = data.facts["block"]
            elif name == "llama":
                from transformers import LlamaConfig as Config  # type: ignore[assignment]

                shape["max_position_embeddings"] = data.facts["block"]
            else:
                from hf_optim.tasks.models.lstm import LSTMConfig as Config  # type: ignore[assignment,no-redef]
            try:
                network = self.model_class(name)(Config(**shape, **values))
            except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
                raise UserError(f"model {name!r}: {values} make no model: {' '.join(str(error).split())}") from error
        network.config.use_cache = False  # nothing is generated while it trains
        network.config.tokenizer_fingerprint = data.facts["fingerprint"]
        network.tokenizer = tokenizer
        return network

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """The class that reads a checkpoint of `name`; transformers finds that of a pretrained one itself."""
        if name == "lstm":
            from hf_optim.tasks.models.lstm import LSTMForCausalLM

            return LSTMForCausalLM
        import transformers

        classes = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "pretrained": "AutoModelForCausalLM"}
        chosen: type[PreTrainedModel] = getattr(transformers, classes[name])
        return chosen

    def collate(self, data: Data) -> Callable[[Any], dict[str, Any]]:
        """The dataset's `__getitems__` gives whole batches."""
        return dict

    def reduce(self, logits: Any, labels: Any) -> Any:
        """[batch, 5] float64: nats, predicted tokens, right ones, bytes they cover, unknown ones among them."""
        import torch

        scores = logits[0] if isinstance(logits, tuple) else logits
        tokens, covered = labels
        truth, scores = tokens[:, 1:], scores[:, :-1].float()
        kept = truth != -100
        nats = torch.nn.functional.cross_entropy(scores.flatten(0, 1), truth.flatten(), reduction="none")
        right = (scores.argmax(-1) == truth) & kept
        sums = [nats.view(truth.shape).double().sum(1), kept.sum(1), right.sum(1), covered[:, 0], covered[:, 1]]
        return torch.stack([part.double() for part in sums], dim=1)

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """loss (nats a token), perplexity, accuracy (of the next token), and bits_per_byte of the text, which compares
        across tokenizers; it is left out where unknown words hide what the text says.
        """
        import numpy as np

        nats, tokens, right, covered, unknown = predictions.sum(axis=0)
        loss = float(nats / tokens)
        with np.errstate(over="ignore"):
            figures = {"loss": loss, "perplexity": float(np.exp(loss)), "accuracy": float(right / tokens)}
        if unknown:
            figures["unknown"] = float(unknown / tokens)
        else:
            figures["bits_per_byte"] = float(nats / np.log(2) / covered)
        return figures

    def callbacks(self, model: PreTrainedModel, preset: Preset, steps: int) -> list[Any]:
        """The tokenizer goes into every checkpoint, so that it can be used and trained further."""
        from hf_optim.tasks.models.language import KeepTokenizer

        tokenizer: Any = model.tokenizer
        return [KeepTokenizer(tokenizer)]

    def suits(self, model: PreTrainedModel, data: Data) -> None:
        """Raise a `UserError` if the model was trained with another tokenizer."""
        mark = getattr(model.config, "tokenizer_fingerprint", None)
        if mark is not None and mark != data.facts["fingerprint"]:
            raise UserError(
                f"checkpoint: it was trained with another tokenizer ({mark}) than the data have "
                f"({data.facts['fingerprint']}): give the data, size and options of its run"
            )
        from hf_optim.tasks.models.language import fits

        fits(model, data.facts)


def _whole(values: Mapping[str, Any], key: str, least: int) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"options: {key} must be an integer of at least {least}, got {value!r}")
    return value


def _newest(path: str | None) -> int:
    """The time in ns of the last change to `path` and what is directly in it; 0 if it is no path."""
    here = Path(path) if path else None
    if here is None or not here.exists():
        return 0
    return max(entry.stat().st_mtime_ns for entry in [here, *(here.iterdir() if here.is_dir() else ())])


@lru_cache(maxsize=2)
def _streams(
    name: str, own: bool, limit: int | None, checkpoint: str | None, kind: str | None, vocabulary: int, changed: int
) -> tuple[dict[str, Stream], Any, str]:
    """The splits as streams of tokens, their tokenizer and a note; read once for the runs of a process."""
    from hf_optim.tasks.data import blocks

    texts, note = _texts(name, own)
    if limit:
        texts = {split: part[: limit if split == "train" else limit // 4] for split, part in texts.items()}
        note += f"; the first {limit} paragraphs of train and {limit // 4} of the others only"
    if kind is None:
        from hf_optim.tasks.models.language import tokenizer_of

        tokenizer = tokenizer_of(checkpoint)
    elif kind == "bpe":
        from hf_optim.tasks.data import tokenizer as training

        if vocabulary < 258:
            raise UserError(f"options: vocabulary must be at least 258 (256 bytes and two marks), got {vocabulary}")
        roles = {"eos_token": blocks.END, "unk_token": blocks.UNKNOWN}
        tokenizer = training.train("bpe", texts["train"], vocabulary, (blocks.END, blocks.UNKNOWN), roles=roles)
    elif kind == "words":
        tokenizer = blocks.words(texts["train"], vocabulary)
    else:
        raise UserError(f"options: tokenizer must be bpe or words, got {kind!r}")
    return {split: blocks.encode(tokenizer, part) for split, part in texts.items()}, tokenizer, note


def _texts(name: str, own: bool) -> tuple[dict[str, list[str]], str]:
    from hf_optim.tasks.data import blocks, paragraphs

    if own:
        texts, note = blocks.read(Path(name))
        return texts, "files of your own" + (f"; {note}" if note else "")
    if name in EMBEDDED:
        texts, _ = paragraphs.read(HERE / "wiki_paragraphs")
        return texts, f"{EMBEDDED[name]}; not comparable with published figures"
    if name in BRING:
        raise UserError(f"data: {BRING[name]}")
    from hf_optim.tasks.data import hub

    repository, config = HUB[name]
    parts = hub.load(repository, config=config, what="data")
    texts = {split: [text.strip() for text in parts[split]["text"] if text.strip()] for split in paragraphs.SPLITS}
    return texts, f"{repository}, {config} from the Hub; a line that is not empty is a text"


def _digest(streams: Mapping[str, Stream], mark: str, block: int) -> str:
    import hashlib

    digest = hashlib.sha256(f"{mark} {block}".encode())
    for split, stream in streams.items():
        digest.update(split.encode())
        digest.update(stream.ids.tobytes())
        digest.update(stream.covered.tobytes())
    return digest.hexdigest()


TASK = CausalLM()
