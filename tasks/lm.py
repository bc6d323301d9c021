"""Causal language models: GPT-2, Llama and an LSTM from scratch, and the fine-tuning of a checkpoint of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.core.validate import no_choice
from hf_optim.errors import UserError
from hf_optim.experiment.task import Data, Metric, Preset, Primary, Rung, Task
from hf_optim.tasks.presets import shapes
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
REMOTE = {
    **{name: f"{repository}, {config}" for name, (repository, config) in HUB.items()},
    "fineweb-edu": "HuggingFaceFW/fineweb-edu, streamed into token files",
    "c4": "allenai/c4, English, streamed into token files",
    "openwebtext": "Skylion007/openwebtext, streamed into token files",
}
#: sets that a preset names and that nobody may hand on: what to do instead
BRING = {
    "ptb": "the Penn Treebank's text on the Hub is behind a script that datasets no longer runs: give a folder with "
    "train.txt, validation.txt and test.txt (one sentence a line) with --data DIR"
}
FEW = 20_000_000  # tokens of a split whose frequencies are counted
#: values of a preset's `model` that concern the text; the others are the configuration's
TEXT = ("block", "tokenizer", "vocabulary", "checkpoint", "held_out", "corpus_tokens", "duplicates")


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
    remote = REMOTE
    options: Mapping[str, str] = {
        "parameters": "about so many parameters, embeddings included, in place of width and depth (gpt2 and llama)",
        "held_out": "so many blocks of validation and of test, evenly spread, are evaluated (default: all)",
        "corpus_tokens": "at most so many train tokens of a streamed corpus are kept (default: 100 million)",
        "duplicates": "drop or keep held-out texts that stand in another split too (default: drop; streams: always)",
    }
    label_names = ("labels", "covered")

    def with_options(self, model: str, preset: Preset, options: Mapping[str, Any]) -> Preset:
        """The preset with `options`; `parameters` among them becomes the width and depth of such a model."""
        if "parameters" not in options:
            return super().with_options(model, preset, options)
        shapes.check(model)
        rest = {key: value for key, value in options.items() if key != "parameters"}
        asked = super().with_options(model, preset, rest)
        shape = shapes.options(model, options["parameters"], *_around(model, asked.model.value))
        for key in rest:
            if key in shape and key != "initializer_range":
                raise UserError(f"options: parameters chooses {key}: give one of the two")
        return replace(asked, model=replace(asked.model, value={**asked.model.value, **shape, **rest}))

    def rung(self, model: str, preset: Preset) -> Rung:
        """The size of `model` as the preset has it; gpt2 and llama alone have a rule for it."""
        shapes.check(model)
        values, (vocabulary, block, tied) = preset.model.value, _around(model, preset.model.value)
        parameters = shapes.count(model, values, vocabulary, block, tied)
        cost = shapes.flops(model, values, parameters, block)
        return Rung(parameters, block - 1, cost, "6 a parameter and token, 12 x layers x width x block in attention")

    def data(self, preset: Preset, source: str | None) -> Data:
        """Blocks of the preset's text, of the embedded one of a name, or of files of your own.

        facts: tokenizer, its fingerprint, vocabulary (entries), block, frequency_loss, bytes of each split.
        """
        values = _checked(preset.model.value)
        name, checkpoint = source or preset.data.value, values.get("checkpoint")
        own = source is not None and name not in EMBEDDED and name not in REMOTE
        text = _Text(
            name,
            own=own,
            limit=preset.samples.value if source is None else None,
            apart=values.get("duplicates") != "keep",
            checkpoint=checkpoint,
            kind=values.get("tokenizer"),
            vocabulary=values.get("vocabulary", 0),
            changed=(_newest(name) if own else 0) + _newest(checkpoint),
        )
        return _data(text, values["block"], values.get("held_out"), values.get("corpus_tokens"))

    def synthetic(self, model: str, preset: Preset) -> Data | None:
        """See `Task`; none for a checkpoint, whose tokenizer is its own."""
        values = _checked(preset.model.value)
        if "checkpoint" in values:
            return None
        from hf_optim.tasks.data import synthetic

        return synthetic.blocks(preset.data.value, values["block"], values["vocabulary"])

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """The model for the tokenizer's vocabulary, or the checkpoint's."""
        from hf_optim.tasks.data import blocks
        from hf_optim.tasks.models.images import UNFIT
        from hf_optim.tasks.models.language import check_heads, pretrained, settled

        values = {key: value for key, value in preset.model.value.items() if key not in TEXT}
        tokenizer = data.facts["tokenizer"]
        end = blocks.end_of(tokenizer)
        if name == "pretrained":
            model = pretrained(preset.model.value["checkpoint"], data.facts)
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
                config = Config(**shape, **values)
                if name == "llama":
                    check_heads(config)
                model = self.model_class(name)(config)
            except UNFIT as error:
                raise UserError(f"model {name!r}: {values} make no model: {' '.join(str(error).split())}") from error
            model = settled(model)
        model.config.tokenizer_fingerprint = data.facts["fingerprint"]
        model.tokenizer = tokenizer
        return model

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
        """[batch, 6] float64: nats, predicted tokens, right ones; of `blocks.counted`, the three columns."""
        import torch

        from hf_optim.tasks.models.language import next_tokens

        tokens, covered = labels
        nats, kept, right = next_tokens(logits, tokens)
        sums = [nats.sum(1), kept.sum(1), right.sum(1), *covered.unbind(1)]
        return torch.stack([part.double() for part in sums], dim=1)

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """loss (nats a token), perplexity, accuracy (of the next token), and bits_per_byte of the text, which compares
        across tokenizers: an unknown word, of which the model says no more than that, is spelled at 8 bits a byte.
        """
        import numpy as np

        nats, tokens, right, covered, unknown, spelled = predictions.sum(axis=0)
        loss = float(nats / tokens)
        perplexity = float(np.exp(min(loss, 700.0)))  # infinite, no checkpoint could be read again
        figures = {"loss": loss, "perplexity": perplexity, "accuracy": float(right / tokens)}
        if unknown:
            figures["unknown"] = float(unknown / tokens)
        return {**figures, "bits_per_byte": float((nats / np.log(2) + 8 * spelled) / covered)}

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


def _around(model: str, values: Mapping[str, Any]) -> tuple[int, int, bool]:
    """The vocabulary, the block, and whether the output layer is the embedding, as the configurations' defaults."""
    tied = bool(values.get("tie_word_embeddings", model == "gpt2"))
    return _whole(values, "vocabulary", 3), _whole(values, "block", 2), tied


def _checked(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values that concern the text, as far as they can be told without it; a `UserError` names a wrong one."""
    block = _whole(values, "block", 2)
    for key, least in (("held_out", 1), ("corpus_tokens", block)):
        if values.get(key) is not None:
            _whole(values, key, least)
    if values.get("duplicates") not in (None, *(known := ("drop", "keep"))):
        raise UserError(f"options: {no_choice('duplicates', values['duplicates'], known)}")
    for key, kinds in (("tokenizer", str), ("checkpoint", str | None)):
        if key in values and not isinstance(values[key], kinds):
            raise UserError(f"options: {key} must be a text, got {values[key]!r}")
    if "checkpoint" not in values and _whole(values, "vocabulary", 3) < 258 and values["tokenizer"] == "bpe":
        raise UserError(
            f"options: vocabulary must be at least 258 (256 bytes and two marks), got {values['vocabulary']}"
        )
    return values


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


@dataclass(frozen=True)
class _Text:
    """Which text, in which tokens: of an `own` path or of a name here, the first `limit` paragraphs of train, held-out
    ones `apart` from the other splits'; a tokenizer of a `kind` and size, or where that is None the checkpoint's.
    `changed` tells two states of the same files apart.
    """

    name: str
    own: bool
    limit: int | None
    apart: bool
    checkpoint: str | None
    kind: str | None
    vocabulary: int
    changed: int


@lru_cache(maxsize=4)
def _data(text: _Text, block: int, held_out: int | None, tokens: int | None) -> Data:
    """The splits as blocks, at most `held_out` of validation and of test; made once for the runs of a process."""
    from hf_optim.tasks.data import blocks, corpora

    packed = text.name in corpora.HUB or (text.own and corpora.is_folder_of_documents(Path(text.name)))
    if packed:
        streams, tokenizer, note = _corpus(text, tokens or corpora.TOKENS)
    elif tokens is not None:
        raise UserError("options: corpus_tokens is for a streamed corpus; these data are read as a whole")
    else:
        streams, tokenizer, note = _streams(text)
    count = len(streams["train"].ids)
    if count < block:
        raise UserError(
            f"data: the train split has {count} tokens, fewer than one block of {block}: "
            "bring more text, or set --model.block"
        )
    splits: dict[str, Any] = {
        split: corpora.Packed(stream, block) if packed else blocks.Blocks(stream, block, whole=split != "train")
        for split, stream in streams.items()
    }
    ids, mark = blocks.ids_of(tokenizer), blocks.fingerprint(tokenizer)
    digest = _digest(streams, mark, block)
    if held_out is not None:
        splits |= {split: blocks.spread(splits[split], held_out) for split in ("validation", "test")}
        digest += f"-{held_out}"
        note += f"; at most {held_out} blocks of validation and of test are evaluated"
    frequency = blocks.frequency_loss(*(streams[s].first(FEW) for s in ("train", "test")), ids)
    facts = {
        "tokenizer": tokenizer,
        "fingerprint": mark,
        "vocabulary": ids,
        "block": block,
        "frequency_loss": frequency,
        "known_losses": {"predicting each test token by its frequency in train alone": frequency},
        "bytes": {split: stream.bytes for split, stream in streams.items()},
    }
    note += f"; predicting each test token by its frequency in train alone: {frequency:.4f} nats"
    name = Path(text.name).resolve().name if text.own else text.name
    return Data(**splits, name=name, fingerprint=digest, note=note, facts=facts)


@lru_cache(maxsize=2)
def _streams(text: _Text) -> tuple[dict[str, Stream], Any, str]:
    """The splits as streams of tokens, their tokenizer and a note; read once for the runs of a process."""
    from hf_optim.tasks.data import blocks, paragraphs

    texts, note = _texts(text.name, text.own)
    if text.apart and (dropped := paragraphs.apart(texts)):
        note += f"; {dropped} held-out texts left out that stand in another split too"
    if limit := text.limit:
        texts = {split: part[: limit if split == "train" else limit // 4] for split, part in texts.items()}
        note += f"; the first {limit} paragraphs of train and {limit // 4} of the others only"
    tokenizer = _given(text)
    if tokenizer is None and text.kind == "bpe":
        from hf_optim.tasks.data import tokenizer as training

        roles = {"eos_token": blocks.END, "unk_token": blocks.UNKNOWN}
        tokenizer = training.train("bpe", texts["train"], text.vocabulary, (blocks.END, blocks.UNKNOWN), roles=roles)
    elif tokenizer is None:
        tokenizer = blocks.words(texts["train"], text.vocabulary)
    return {split: blocks.encode(tokenizer, part) for split, part in texts.items()}, tokenizer, note


def _given(text: _Text) -> Any:
    """The tokenizer of a checkpoint (no kind) or of the folder that `kind` names; None where one is to be trained."""
    kind = text.kind
    if kind is not None and kind not in ("bpe", "words") and not Path(kind).is_dir():
        raise UserError(f"options: tokenizer must be bpe, words or a folder with one, got {kind!r}")
    if kind in ("bpe", "words"):
        return None
    from hf_optim.tasks.data.saved_tokenizer import read_tokenizer
    from hf_optim.tasks.models.language import tokenizer_of

    return tokenizer_of(text.checkpoint) if kind is None else read_tokenizer(Path(kind))


def _corpus(text: _Text, tokens: int) -> tuple[dict[str, Stream], Any, str]:
    """The same of a corpus that is streamed into token files."""
    from hf_optim.tasks.data import corpora

    name, own = text.name, text.own

    def documents() -> Any:
        return corpora.documents_in(Path(name)) if own else corpora.documents(name)

    key = corpora.fingerprint_of(Path(name)) if own else repr(corpora.HUB[name])
    tokenizer = _given(text)
    if tokenizer is None:
        tokenizer = corpora.trained_tokenizer(documents(), key, str(text.kind), text.vocabulary)
    corpus = corpora.prepare(documents(), key, tokenizer, tokens)
    counts = ", ".join(f"{c['tokens']:,} tokens of {split}" for split, c in corpus.facts["splits"].items())
    note = f"{'documents of your own' if own else ' '.join(filter(None, corpora.HUB[name]))}, split by their hashes: "
    return corpus.streams, tokenizer, f"{note}{counts}; {corpus.facts['dropped']} equal held-out documents left out"


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
    parts = hub.load(repository, config=config, key="data")
    texts = {split: [text.strip() for text in parts[split]["text"] if text.strip()] for split in paragraphs.SPLITS}
    return texts, f"{repository}, {config} from the Hub; a line that is not empty is a text"


def _digest(streams: Mapping[str, Stream], mark: str, block: int) -> str:
    import hashlib

    digest = hashlib.sha256(f"{mark} {block}".encode())
    for split, stream in streams.items():
        digest.update(split.encode())
        for part in (stream.ids, stream.covered):
            for start in range(0, len(part), FEW):  # mapped ones are not read into memory as a whole
                digest.update(part[start : start + FEW].tobytes())
    return digest.hexdigest()


TASK = CausalLM()
