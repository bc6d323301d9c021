"""Translation, German to English: a small Transformer with two vocabularies, scored by loss, BLEU and chrF."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.core.validate import no_choice
from hf_optim.errors import UserError
from hf_optim.experiment.files import write_atomically
from hf_optim.experiment.task import REST, Data, Metric, Moment, Preset, Primary, Size, Source, Task, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from transformers import GenerationConfig, PreTrainedModel

    from hf_optim.tasks.data.parallel import Corpus
    from hf_optim.tasks.data.sentences import Sentences

HERE = Path(__file__).parent / "data"
EMBEDDED = {"de_en_help": "26,630 German-English sentence pairs of a software manual (24,723/967/940)"}
HUB = {"multi30k": "bentrevett/multi30k"}

TUTORIAL = "PyTorch's translation tutorial, whose implementation TLR names as its own"
ADAM = {"name": "adam", "lr": 1e-4, "betas": [0.9, 0.98], "eps": 1e-9}
# Samples are written for so many sentences.
SHOWN = 20
GENERATED_AT_ONCE = 64

SMOKE = {
    "width": 32,
    "feedforward": 64,
    "layers": 1,
    "heads": 4,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "initialisation": "normal",
    "vocabulary": 600,
    "longest": 60,
    "beams": 1,
    "sentences": 16,
}
SMALL = {
    **SMOKE,
    "width": 128,
    "feedforward": 256,
    "layers": 2,
    "vocabulary": 4000,
    "longest": 40,
    "sentences": 300,
}
PAPER = {
    "width": 512,
    "feedforward": 512,
    "layers": 3,
    "heads": 8,
    "dropout": 0.1,
    "label_smoothing": 0.0,
    "initialisation": "glorot",
    "vocabulary": 10000,
    "longest": 128,
    "beams": 1,
    "sentences": 2000,
}
#: where PAPER's values stand; the loss is "a standard cross-entropy" in print, the vocabulary and the BLEU are ours
PARTS: dict[str, Source] = {
    REST: "paper", **dict.fromkeys(PAPER, "code"), "layers": "paper", "heads": "paper", "label_smoothing": "paper",
    **dict.fromkeys(("vocabulary", "longest", "beams", "sentences"), "ours"),
}  # fmt: skip

SIZE_TABLE = {
    "smoke": Size(
        "seconds: 256 of the embedded pairs, for tests",
        {
            "transformer": Preset(
                epochs=Value(4),
                batch_size=Value(32),
                optimizer=Value({"name": "adamw", "lr": 3e-3}),
                data=Value("de_en_help"),
                model=Value(SMOKE, "ours", "no dropout, so that several processes train as one does"),
                samples=Value(256, "ours", "of each split"),
                evaluations=Value(2),
                train_evaluation=Value(64),
            ),
        },
    ),
    "small": Size(
        "minutes on one core: all embedded pairs; optimizers visibly differ",
        {
            "transformer": Preset(
                epochs=Value(1),
                steps=Value(400, "ours", "about one pass over the train split"),
                batch_size=Value(64),
                optimizer=Value({"name": "adamw", "lr": 2e-3}),
                data=Value("de_en_help"),
                model=Value(SMALL, "ours", "2.2 million parameters; Glorot's initialisation learns slower here"),
                evaluations=Value(3, "ours", "translating costs time"),
                train_evaluation=Value(1000),
                evaluation_batch=Value(128),
            ),
        },
    ),
    "paper": Size(
        "TLR's translation experiment (Figure 5), Multi30k from the Hub; for a GPU",
        {
            "transformer": Preset(
                epochs=Value(18, "code", f"{TUTORIAL}; 16 in its older versions"),
                batch_size=Value(128, "code", TUTORIAL),
                optimizer=Value(
                    {"name": "tlr", "gamma": 0.33, "p": 0.2, "base": ADAM},
                    "code",
                    "gamma and p are printed; Adam's values are the tutorial's, the paper's rate is of a grid",
                ),
                data=Value("multi30k", "paper"),
                model=Value(
                    PAPER,
                    "ours",
                    "printed: 8 heads, 3+3 layers; from the tutorial: width 512, feed-forward 512, dropout 0.1, "
                    "initialisation, two vocabularies; ours: byte-level BPE of 10,000 for its spaCy words, pairs up "
                    "to 128 tokens, BLEU (the paper shows losses)",
                    PARTS,
                ),
                schedule=Value({"name": "constant"}, "code", TUTORIAL),
                validation=Value(0, "ours", "none: Multi30k has a validation split"),
                drop_last=Value(False, "code", TUTORIAL),
            ),
        },
    ),
}


class Translator(Task):
    """See the module. Loss in nats a target token (BPE, end of sentence included), BLEU and chrF in [0, 100]."""

    name = "translation"
    title = "Translation, German to English"
    primary = Primary("test_bleu", greater_is_better=True)
    metrics = (
        Metric("bleu", True, "points"),
        Metric("chrf", True, "points"),
        Metric("token_accuracy", True, "share"),
        Metric("perplexity", False),
    )
    models = ("transformer",)
    sizes = SIZE_TABLE
    embedded = EMBEDDED
    options = {
        "source_column": "the language translated from: a column, or the suffix of plain files (default de)",
        "target_column": "the language translated to (default en)",
    }

    def data(self, preset: Preset, source: str | None) -> Data:
        """The preset's pairs, the embedded ones by name (`./NAME` is a folder of yours), or files of your own."""
        values = _checked(preset.model.value)
        columns = str(values.get("source_column", "de")), str(values.get("target_column", "en"))
        name = source or preset.data.value
        if name in EMBEDDED:
            corpus = _read(str(HERE / name), 0, *columns)
            note = f"{EMBEDDED[name]}; not comparable with figures on Multi30k"
        elif source is None:
            corpus, note = _hub(name, *columns), f"{HUB[name]} from the Hub"
        else:
            path = Path(os.path.realpath(source))
            corpus, note, name = _read(str(path), _newest(path), *columns), "files of your own", path.name
        limit = preset.samples.value if source is None else None
        if limit:
            note += f"; {limit} pairs of a split only"
        prepared = _prepare(corpus, limit, values["vocabulary"], values["longest"])
        notes = [note, corpus.note, prepared["note"]]
        facts = {**prepared["facts"], "columns": columns, "sentences": values["sentences"]}
        facts["generation"] = (values["longest"], values["beams"])
        return Data(**prepared["splits"], name=name, fingerprint=corpus.fingerprint,
                    note="; ".join(text for text in notes if text), facts=facts)  # fmt: skip

    def synthetic(self, model: str, preset: Preset) -> Data:
        """See `Task`."""
        from hf_optim.tasks.data import synthetic

        values = _checked(preset.model.value)
        return synthetic.sentences(preset.data.value, values["vocabulary"], values["longest"])

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """The Transformer for the data's two vocabularies."""
        from hf_optim.tasks.models.images import UNFIT
        from hf_optim.tasks.models.translation import Translation, TranslationConfig

        values, source, target = _checked(preset.model.value), data.facts["source"], data.facts["target"]
        ids = {f"{role}_token_id": getattr(target, f"{role}_token_id") for role in ("pad", "bos", "eos")}
        config = TranslationConfig(
            vocab_size=len(source),
            decoder_vocab_size=len(target),
            share_encoder_decoder_embeddings=False,
            tie_word_embeddings=False,
            d_model=values["width"],
            encoder_layers=values["layers"],
            decoder_layers=values["layers"],
            encoder_attention_heads=values["heads"],
            decoder_attention_heads=values["heads"],
            encoder_ffn_dim=values["feedforward"],
            decoder_ffn_dim=values["feedforward"],
            activation_function="relu",
            dropout=float(values["dropout"]),
            attention_dropout=float(values["dropout"]),
            activation_dropout=float(values["dropout"]),
            max_position_embeddings=values["longest"] + 1,
            scale_embedding=True,
            decoder_start_token_id=target.bos_token_id,
            forced_eos_token_id=None,
            label_smoothing=float(values["label_smoothing"]),
            initialisation=values["initialisation"],
            tokenizers=data.facts["tokenizers"],
            **ids,
        )
        try:
            model = Translation(config)
        except UNFIT as error:
            raise UserError(f"model {name!r}: its options make no model: {' '.join(str(error).split())}") from error
        model.generation_config = _generation(target, values["longest"], values["beams"])
        return model

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """The class that reads a checkpoint."""
        from hf_optim.tasks.models.translation import Translation

        return Translation

    def collate(self, data: Data) -> Callable[[Any], dict[str, Any]]:
        """Sentences padded to the longest of the batch."""
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(data.facts["source"], label_pad_token_id=-100)

    def reduce(self, logits: Any, labels: Any) -> Any:
        """Of each sentence [batch, 3]: the sum of its tokens' cross-entropies, its tokens, those predicted right."""
        import torch

        tokens = labels.ne(-100)
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
        ).view(labels.shape)
        right = logits.argmax(-1).eq(labels) & tokens
        return torch.stack([losses.sum(1), tokens.sum(1).float(), right.sum(1).float()], dim=1)

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Loss (nats a target token), perplexity and token accuracy of the sums [N, 3] that `reduce` gives."""
        import math

        loss, tokens, right = predictions.sum(axis=0, dtype="float64").tolist()
        # A diverged loss is finite where its exponential is not: the run is to be judged by the loss.
        perplexity = math.exp(min(loss / tokens, 700.0)) if math.isfinite(loss) else math.nan
        return {"loss": loss / tokens, "perplexity": perplexity, "token_accuracy": right / tokens}

    def sample(self, model: PreTrainedModel, data: Data, moment: Moment) -> dict[str, float]:
        """BLEU and chrF of translations of sentences spread over the split; `samples/SPLIT-STEP.txt` shows some.

        Batches are the same ones for any number of processes. Every process takes as many turns, so that sharded
        models can gather their weights together.
        """
        from accelerate.utils import gather_object

        split: Sentences = getattr(data, moment.split)
        chosen = split.spread(data.facts["sentences"])
        by_length = sorted(chosen, key=lambda index: len(split[index]["input_ids"]))
        batches = [by_length[i : i + GENERATED_AT_ONCE] for i in range(0, len(by_length), GENERATED_AT_ONCE)]
        mine: list[tuple[int, str]] = []
        for turn in range(moment.rank, -(-len(batches) // moment.processes) * moment.processes, moment.processes):
            batch = batches[turn % len(batches)]
            mine += zip(batch, _translate(model, data, split, batch), strict=True)
        sentences = dict(gather_object(mine) if moment.processes > 1 else mine)
        hypotheses, references = [sentences[index] for index in chosen], [split.pairs.target[index] for index in chosen]
        if moment.folder is not None and moment.rank == 0:
            _write(moment, split, chosen[:SHOWN], sentences)
        return {
            name: _metric(name).compute(predictions=hypotheses, references=references)[name]
            for name in ("bleu", "chrf")
        }

    def suits(self, model: PreTrainedModel, data: Data) -> None:
        """A checkpoint's token ids mean something under its own tokenizers only."""
        stored = getattr(model.config, "tokenizers", None)
        if stored != data.facts["tokenizers"]:
            raise UserError(
                f"checkpoint: its tokenizers ({stored}) are not those of {data.name} ({data.facts['tokenizers']}): "
                "give the data, the size and the --model.vocabulary that it was trained with"
            )


def _translate(model: PreTrainedModel, data: Data, split: Sentences, batch: list[int]) -> list[str]:
    tokenizer = data.facts["source"]
    # a checkpoint's own may ask for a million beams
    model.generation_config = _generation(data.facts["target"], *data.facts["generation"])
    inputs = tokenizer.pad({"input_ids": [split[index]["input_ids"] for index in batch]}, return_tensors="pt")
    output = model.generate(**inputs.to(model.device))  # type: ignore[operator]
    return [text.strip() for text in data.facts["target"].batch_decode(output, skip_special_tokens=True)]


def _generation(target: Any, longest: int, beams: int) -> GenerationConfig:
    """How sentences are translated: by the options, in the marks of the target's tokenizer."""
    from transformers import GenerationConfig

    ids = {f"{role}_token_id": getattr(target, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    return GenerationConfig(max_new_tokens=longest, num_beams=beams, decoder_start_token_id=target.bos_token_id, **ids)


def _write(moment: Moment, split: Sentences, shown: list[int], hypotheses: dict[int, str]) -> None:
    assert moment.folder is not None
    blocks = [
        f"source:     {split.pairs.source[i]}\nreference:  {split.pairs.target[i]}\nhypothesis: {hypotheses[i]}\n"
        for i in shown
    ]
    write_atomically(moment.folder, f"samples/{moment.split}-{moment.step:06d}.txt", "\n".join(blocks))


COUNTS = ("width", "feedforward", "layers", "heads", "vocabulary", "longest", "beams", "sentences")


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """The model's values; a `UserError` names one that is out of range."""
    for key in COUNTS:
        least = 2 if key == "longest" else 1  # a word, and the end of the sentence
        if isinstance(values[key], bool) or not isinstance(values[key], int) or values[key] < least:
            raise UserError(f"model: {key} must be a whole number from {least} on, got {values[key]!r}")
    for key in ("dropout", "label_smoothing"):
        if isinstance(values[key], bool) or not isinstance(values[key], (int, float)) or not 0 <= values[key] < 1:
            raise UserError(f"model: {key} must be from 0 to below 1, got {values[key]!r}")
    if values["initialisation"] not in (known := ("normal", "glorot")):
        raise UserError(f"model: {no_choice('initialisation', values['initialisation'], known)}")
    if values["width"] % (2 * values["heads"]):
        raise UserError(f"model: width {values['width']} must divide by twice the {values['heads']} heads")
    return values


@lru_cache(maxsize=4)
def _metric(name: str) -> Any:
    from hf_optim import metrics

    return metrics.load(name)


@lru_cache(maxsize=2)
def _prepare(corpus: Corpus, limit: int | None, vocabulary: int, longest: int) -> dict[str, Any]:
    """Tokenizers and encoded splits, made once for the runs of a process."""
    from hf_optim.tasks.data.sentences import prepare

    return prepare(corpus, limit, vocabulary, longest)


@lru_cache(maxsize=2)
def _read(path: str, changed: int, source: str, target: str) -> Corpus:
    """Files, read once for the runs of a process; `changed` makes files that were changed be read anew."""
    from hf_optim.tasks.data.parallel import read

    return read(Path(path), source, target)


def _newest(path: Path) -> int:
    """The time in ns of the last change to `path`, a file directly in it, or `path.SUFFIX`; 0 if there is none."""
    files = path.iterdir() if path.is_dir() else path.parent.glob(f"{path.name}*")
    return max((file.stat().st_mtime_ns for file in [*files, *([path] if path.exists() else [])]), default=0)


@lru_cache(maxsize=1)
def _hub(name: str, source: str, target: str) -> Corpus:
    from hf_optim.tasks.data import hub, parallel

    repository = HUB[name]
    parts = hub.load(repository)
    splits = {}
    for split in (split for split in parallel.SPLITS if split in parts):
        splits[split] = parallel.columns(parts[split].to_dict(), f"{repository}, {split}", source, target)
    return parallel.assemble(splits)


TASK = Translator()
