"""`make bench-labeller`: pseudo-labels from token ids beside those from text; a classifier's batches beside a plain loop.

Text: `PPT_DATA/text/en` and reviews `PPT_DATA/en/stars5` where the variable is set, else the embedded world's, and it
says so. With a GPU the classifiers are random RoBERTas of base's and large's shape; without, a tiny one as a dry run.
`--only classifier` imports nothing but numpy, scipy, torch, transformers, tokenizers, safetensors and rich.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common_bench import finish, in_turn, seconds
from corpora.common.rng import generator

Measured = tuple[dict[str, float], dict[str, Any]]

TEXT_UNITS = 10_000  # that the text labeller reads a round; the other reads all
# Of encyclopedia paragraphs (our 91 MB): words, of which the logarithm is near normal; 116 T5 tokens on average.
MEDIAN_WORDS, SPREAD = 60, 0.8

# Layers, width, heads, texts for our batches, texts for the slower plain loop.
SHAPES = {
    "roberta_base": (12, 768, 12, 8 * 4096, 4096),
    "roberta_large": (24, 1024, 16, 4 * 4096, 2048),
    "tiny": (2, 64, 2, 1024, 512),
}
VOCABULARY = 50_265
PLAIN_BATCH = 32


def linear(folder: Path, rounds: int, workers: int) -> Measured:
    """Labels from ids and from text, one core each; and the whole store by all workers."""
    from corpora.build import build
    from corpora.build_settings import BuildSettings
    from corpora.common.processes import worker_pool
    from corpora.label_training import train
    from corpora.labeller import load_labeller
    from corpora.labelling import RANGE, label_units
    from corpora.store import SentenceStore

    text, reviews, test, tokenizer = _sources(folder)
    settings = {"text": [text], "tokenizer": tokenizer, "formats": ["sentence_pair"], "language": "en"}
    build(BuildSettings.model_validate({**settings, "out": str(folder / "build"), "workers": workers}))
    store = SentenceStore.open(folder / "build" / "store")
    reports = {
        name: train(reviews, folder / name, test=test, language="en", tokenizer=of)
        for name, of in (("tokens", tokenizer), ("text", None))
    }
    labellers = {name: load_labeller(folder / name) for name in reports}
    units = {"tokens": store.n_units, "text": min(TEXT_UNITS, store.n_units)}

    def label(name: str) -> Callable[[], None]:
        def work() -> None:
            for start in range(0, units[name], RANGE):
                labellers[name].predict_units(store, start, min(start + RANGE, units[name]))

        return work

    found = in_turn({name: label(name) for name in labellers}, rounds)
    size = {name: sum(len(text.encode()) for text in store.texts(0, n)) / 1e6 for name, n in units.items()}
    tokens = {name: int(store.unit_offsets[n]) / 1e6 for name, n in units.items()}
    rates = {name: [tokens[name] / s for s in found[name]] for name in found}
    with worker_pool(workers) as pool:
        list(pool.each(abs, [(1,)] * workers))  # the workers are there, as they are after a pass
        whole = seconds(
            lambda: label_units(store, labellers["tokens"], folder / "tokens", folder / "labels", pool)
        )
    raw = {
        "million_tokens_a_second": {name: statistics.median(rate) for name, rate in rates.items()},
        "megabytes_a_second": {name: size[name] / statistics.median(found[name]) for name in found},
        "store_seconds": whole,
        "store_tokens": int(store.unit_offsets[-1]),
        "agreement": {name: report.fields() for name, report in reports.items()},
    }
    faster = statistics.median(a / b for a, b in zip(rates["tokens"], rates["text"], strict=True))
    return {"tokens/text": faster}, raw


def _sources(folder: Path) -> tuple[str, str, str | None, str]:
    """Text, reviews, held-out reviews and tokenizer."""
    data = os.environ.get("PPT_DATA")
    if data:
        stars = f"{data}/en/stars5/combined"
        model = f"{data}/tokenizers/t5_spiece.model"
        return f"{data}/text/en", f"{stars}_train.jsonl.gz", f"{stars}_test.jsonl", model
    from launch.pocket.tasks import write_reviews
    from launch.pocket.world import write_documents

    print("PPT_DATA is unset: generated text of the embedded world")
    write_documents(folder / "world.jsonl", 20_000, seed=5)
    write_reviews(folder / "reviews.jsonl", 3_000, seed=5)
    pocket = Path(__file__).parents[1] / "launch" / "pocket" / "backbone"
    return str(folder / "world.jsonl"), str(folder / "reviews.jsonl"), None, str(pocket)


def classifier(folder: Path, shape: str) -> Measured:
    """One classifier's texts a second: our batches, and a plain loop of 32 texts in their order, in fp32 and bf16."""
    import torch

    from corpora.sequence_labeller import GROUP, SequenceClassifier

    *_, n, n_plain = SHAPES[shape]
    texts = _paragraphs(n)
    model = _random_classifier(folder / shape, shape, texts)
    labeller = SequenceClassifier(str(model))
    print(f"{shape} on {labeller.device}, {labeller.batch_tokens} tokens a batch", flush=True)
    groups = [texts[start : start + GROUP] for start in range(0, n, GROUP)]
    plain = {"fp32": _plain_loop(model, labeller.device, torch.float32)}
    if labeller.device != "cpu":
        plain["bf16"] = _plain_loop(model, labeller.device, torch.bfloat16)
    for loop in plain.values():
        loop(texts[:256])
    labeller.predict(texts[:256])  # kernels are chosen and memory is taken
    ours = [n / seconds(lambda: list(labeller.predict_groups(groups)))]
    rates = {name: n_plain / seconds(lambda loop=loop: loop(texts[:n_plain])) for name, loop in plain.items()}
    ours.append(n / seconds(lambda: list(labeller.predict_groups(groups))))
    rates["ours"] = statistics.mean(ours)
    lengths = [len(ids) for ids in labeller._tokenizer(texts, truncation=True, max_length=256)["input_ids"]]
    raw = {"texts_a_second": rates, "ours_twice": ours, "mean_tokens": float(np.mean(lengths))}
    print(f"{shape}: {rates}", flush=True)
    return {f"{shape}/{name}": rates["ours"] / rates[name] for name in rates if name != "ours"}, raw


def _plain_loop(model: Path, device: str, dtype: Any) -> Callable[[list[str]], None]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval().to(device, dtype)

    def loop(texts: list[str]) -> None:
        for start in range(0, len(texts), PLAIN_BATCH):
            batch = texts[start : start + PLAIN_BATCH]
            given = tokenizer(batch, truncation=True, max_length=256, padding=True, return_tensors="pt")
            with torch.inference_mode():
                network(**given.to(device)).logits.float().softmax(-1).cpu().numpy()

    return loop


def _paragraphs(n: int) -> list[str]:
    """`n` texts as long as an encyclopedia's paragraphs."""
    data = os.environ.get("PPT_DATA")
    if data:
        return list(itertools.islice(_news(Path(data) / "text" / "en" / "bbc_news.jsonl.gz", n), n))
    from launch.pocket.world import documents

    print("PPT_DATA is unset: texts are put together from sentences of the embedded world")
    words = [
        word for document in documents(2_000, 5) for sentence in document for word in sentence.text.split()
    ]
    rng = generator(5, "bench labeller")
    lengths = np.exp(rng.normal(np.log(MEDIAN_WORDS), SPREAD, n)).astype(int) + 3
    starts = rng.integers(0, len(words) - 2_000, n)
    return [" ".join(words[s : s + k]) for s, k in zip(starts.tolist(), lengths.tolist(), strict=True)]


def _news(path: Path, n: int) -> Iterator[str]:
    """Its lines, over and over, two together so that they are as long as an encyclopedia's paragraphs."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line for record in file for line in json.loads(record)["text"].split("\n") if line]
    for number in range(n):
        yield " ".join(lines[(2 * number + k) % len(lines)] for k in range(2))


def _random_classifier(folder: Path, shape: str, texts: list[str]) -> Path:
    """A random RoBERTa with a byte-level BPE of the texts, on disk."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

    layers, width, heads, *_ = SHAPES[shape]
    folder.mkdir(parents=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts[:4096], VOCABULARY, special_tokens=special, show_progress=False)
    bpe.save(str(folder / "bpe.json"))
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "bpe.json"), pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=5,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=("linear", "classifier"))
    arguments = parser.parse_args()
    ratios: dict[str, float] = {}
    raw: dict[str, Any] = {}
    device = "none"
    with tempfile.TemporaryDirectory() as name:
        if arguments.only != "classifier":
            found, raw["linear"] = linear(Path(name), arguments.rounds, arguments.workers)
            ratios |= found
        if arguments.only != "linear":
            import torch

            on_gpu = torch.cuda.is_available()
            device = torch.cuda.get_device_name(0) if on_gpu else "cpu"
            for shape in ("roberta_base", "roberta_large") if on_gpu else ("tiny",):
                found, raw[shape] = classifier(Path(name), shape)
                ratios |= found
    text = "PPT_DATA" if os.environ.get("PPT_DATA") else "generated"
    settings = {"text": text, "rounds": arguments.rounds, "workers": arguments.workers, "device": device}
    finish("labeller", settings, ratios, raw)


if __name__ == "__main__":
    main()
