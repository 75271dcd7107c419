"""`make bench-loader`: opening a build and rendering random examples, beside what training takes and two other readers.

Two stores: a build of `PPT_DATA/text/en` (about 90 MB; where the variable is unset of the embedded world's text, and it
says so), and one of the sizes that ten gigabytes give, whose arrays are drawn here. Readers, all on one core, of the same
random rows: `TaskCorpus.render_batch`; `TaskCorpus.render` row by row, as the trainer did before; and Hugging Face
datasets over the same ids rendered beforehand (`save_to_disk`, rows indexed in batches, in its numpy format and in its
arrow format, flattened; on the small store only, as it needs each format's ids whole on disk: it copies what the others
render). `single_text` has drawn labels here.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_bench import finish, in_turn, ratio, seconds
from corpora.build import build
from corpora.build_settings import BuildSettings
from corpora.common.files import atomic_folder, manifest_hash, write_manifest
from corpora.common.rng import generator
from corpora.example_index import ExampleIndexWriter
from corpora.formats import FORMATS, label_words
from corpora.store import SentenceStore
from corpora.store_writer import store_manifest
from corpora.task_corpus import TaskCorpus
from corpora.tokenizer import Tokenizer
from pretrain.batching import Batch, collate
from pretrain.groups import Batcher, Group, open_groups, share_out
from pretrain.settings import PretrainSettings

PROMPT_LEN = 100
BATCH = 256  # rows rendered or indexed at once
PROCESSES = 8  # of one machine with eight GPUs
BLOCK = 1 << 20  # units or examples drawn at once
HELD_OUT = 20  # one in so many examples

# What the encoder of T5 1.1 XXL takes (its config.json): layers x (q, k, v, o + the gated feed-forward's three matrices).
XXL_ENCODER = 24 * (4 * 4096 * 64 * 64 + 3 * 4096 * 10240)
# With frozen weights a token costs 2 FLOPs a weight forward and 2 back to the prompt. Attention scores and the decoder,
# which would only lower what is needed, are left out.
FLOPS_A_TOKEN = 4 * XXL_ENCODER
H100_BF16 = 790e12  # FLOP/s of a large bf16 matrix product as measured on one, not the data sheet's 989e12
AIM = 0.6  # share of it that training aims at
GPUS = 8


def needed_examples(mean_tokens: float) -> float:
    """Examples a second that 11B training on eight GPUs takes, of `mean_tokens` with the prompt."""
    return GPUS * AIM * H100_BF16 / FLOPS_A_TOKEN / mean_tokens


def real_build(folder: Path) -> str:
    """Build the three unlabelled formats; gives where the text is from."""
    data = os.environ.get("PPT_DATA")
    if data:
        text, tokenizer, origin = f"{data}/text/en", f"{data}/tokenizers/t5_spiece.model", "PPT_DATA/text/en"
    else:
        from launch.pocket.world import write_documents

        print("PPT_DATA is unset: generated text of the embedded world")
        text, origin = str(folder.parent / "world.jsonl"), "generated"
        write_documents(Path(text), 60_000, seed=5)
        tokenizer = str(Path(__file__).parents[1] / "launch" / "pocket" / "backbone")
    formats = [name for name in FORMATS if name != "single_text"]
    build(BuildSettings(text=[text], tokenizer=tokenizer, out=str(folder), language="en", formats=formats))
    return origin


Blocks = Iterable[tuple[Any, Any, Any, bool]]  # query, flat options, options of each, whether held out


def write_corpus(folder: Path, format: str, blocks: Blocks) -> None:
    """Write what `TaskCorpus` reads of a format, labels drawn, beside a finished store."""
    store, words = SentenceStore.open(folder / "store"), label_words(format)
    examples = {"train": 0, "validation": 0}
    with atomic_folder(folder / format) as partial:
        with ExampleIndexWriter(partial, store.n_units) as writer:
            for query, options, counts, held_out in blocks:
                label = np.arange(len(query)) % np.maximum(counts, 1 if len(words) > 5 else len(words))
                writer.append(query, options, counts, label, held_out)
                examples["validation" if held_out else "train"] += len(query)
        fields = {"format": format, "language": "en", "label_words": list(words), "examples": examples}
        store_of = {"store": manifest_hash(folder / "store"), "unit_dtype": writer.dtype.name}
        write_manifest(partial, "task_corpus", {**fields, **store_of})


def single_texts(n_units: int, n: int) -> Blocks:
    """`n` units as texts of their own, in an order drawn."""
    units = generator(0, "single texts").permutation(n_units)[:n]
    none, held = np.empty(0, np.int64), n // HELD_OUT
    for block, held_out in ((units[held:], False), (units[:held], True)):
        yield block, none, np.zeros(len(block), np.int64), held_out


def scaled_store(real: SentenceStore, tokenizer: Tokenizer, folder: Path, factor: float) -> None:
    """A store `factor` times as large: lengths drawn from the real ones, the real tokens over and over."""
    rng, n_units = generator(0, "scaled store"), round(real.n_units * factor)
    lengths, total = real.lengths, 0
    with atomic_folder(folder / "store") as out:
        with (out / "unit_offsets.bin").open("wb") as file:
            np.zeros(1, np.int64).tofile(file)
            for first in range(0, n_units, BLOCK):
                drawn = rng.choice(lengths, min(BLOCK, n_units - first))
                (total + np.cumsum(drawn, dtype=np.int64)).tofile(file)
                total += int(drawn.sum())
        with (out / "tokens.bin").open("wb") as file:
            for first in range(0, total, len(real.tokens)):
                real.tokens[: min(len(real.tokens), total - first)].tofile(file)
        n_docs = round(real.n_docs * factor)
        np.linspace(0, n_units, n_docs + 1).astype(np.int64).tofile(out / "doc_offsets.bin")
        for name in ("position.bin", "n_chars.bin"):  # holes: nothing here reads them
            (out / name).touch()
            os.truncate(out / name, 4 * n_units)
        counts = {"documents": n_docs, "units": n_units, "tokens": total}
        write_manifest(out, "store", store_manifest(tokenizer, counts, keep_text=False))


def scaled_blocks(real: TaskCorpus, n_units: int, factor: float) -> Blocks:
    """Examples whose units lie anywhere in the store: no neighbour is near, which is the worst case for a reader."""
    rng = generator(0, "scaled examples", real.format)
    counts_of = real.n_options(np.arange(len(real)))
    for split in ("train", "validation"):
        n = round(len(real.split(split)) * factor)
        for first in range(0, n, BLOCK):
            size = min(BLOCK, n - first)
            counts = rng.choice(counts_of, size)
            options = rng.integers(0, n_units, int(counts.sum()), np.uint32)
            yield rng.integers(0, n_units, size, np.uint32), options, counts, split == "validation"


def private_bytes() -> int:
    """Memory of this process that no file backs and no other process shares."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def _open_alone(folder: Path, format: str, number: int, barrier: Any, results: Any) -> None:
    tokenizer, rng = Tokenizer.load(folder / "tokenizer"), generator(number, "opening")
    before = private_bytes()
    barrier.wait()
    started = time.perf_counter()
    corpus = TaskCorpus.open(folder, format)
    opened = time.perf_counter()
    corpus.tokenizer = tokenizer  # as the trainer does
    after = private_bytes()
    rows = rng.integers(0, len(corpus), 64 * BATCH)
    corpus.render_batch(rows[:BATCH], tokenizer, PROMPT_LEN)
    first = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        corpus.render_batch(rows[start : start + BATCH], tokenizer, PROMPT_LEN)
    barrier.wait()  # while all hold it
    results.put((opened - started, first - opened, after - before, private_bytes() - before))


def opening(folder: Path, format: str, processes: int) -> dict[str, float]:
    """Medians over fresh processes that open a corpus at once."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    children = [
        context.Process(target=_open_alone, args=(folder, format, number, barrier, results))
        for number in range(processes)
    ]
    for child in children:
        child.start()
    found = np.array([results.get() for _ in children])
    for child in children:
        child.join()
    open_s, first_s, opened, rendered = np.median(found, axis=0).tolist()
    return {
        "open_ms": open_s * 1e3,
        "first_batch_ms": first_s * 1e3,
        "private_mb_after_open": opened / 1e6,
        "private_mb_after_rows": rendered / 1e6,
    }


def readers(corpus: TaskCorpus, tokenizer: Tokenizer, n: int) -> dict[str, Callable[[], object]]:
    """Works that read `n` random rows, other rows at each call, the same ones in the same round."""

    def batches(stream: Iterable[int]) -> Iterable[np.ndarray]:
        rows = generator(next(iter(stream)), "rows").integers(0, len(corpus), n)
        return np.split(rows, range(BATCH, n, BATCH))

    one, many = itertools.count(), itertools.count()
    return {
        "render_loop": lambda: [
            corpus.render(row, tokenizer, PROMPT_LEN) for rows in batches(one) for row in rows.tolist()
        ],
        "render_batch": lambda: [corpus.render_batch(rows, tokenizer, PROMPT_LEN) for rows in batches(many)],
    }


def datasets_readers(
    corpus: TaskCorpus, tokenizer: Tokenizer, folder: Path, n: int, rows_kept: int
) -> tuple[dict[str, Callable[[], object]], float]:
    """The same of Hugging Face datasets over rendered ids, and the seconds it takes to open them."""
    import datasets
    import pyarrow as pa

    datasets.disable_progress_bars()
    kept = min(rows_kept, len(corpus))
    tables = []
    for start in range(0, kept, 4096):
        some = corpus.render_batch(np.arange(start, min(start + 4096, kept)), tokenizer, PROMPT_LEN)
        ids = pa.ListArray.from_arrays(pa.array(some.offsets.astype(np.int32)), pa.array(some.input_ids))
        tables.append(pa.table({"input_ids": ids, "label": some.labels}))
    datasets.Dataset(pa.concat_tables(tables)).save_to_disk(str(folder))
    opened = seconds(lambda: datasets.load_from_disk(str(folder)))
    plain = datasets.load_from_disk(str(folder))

    def work(name: str) -> Callable[[], object]:
        stream, formatted = itertools.count(), plain.with_format(name)

        def read() -> None:
            rows = generator(next(stream), "rows").integers(0, kept, n)
            for start in range(0, n, BATCH):
                ids = formatted[rows[start : start + BATCH]]["input_ids"]
                if name == "arrow":
                    lists = ids.combine_chunks()
                    lists.flatten().to_numpy(), lists.offsets.to_numpy()

        return read

    return {"datasets_numpy": work("numpy"), "datasets_arrow": work("arrow")}, opened


def steps(
    groups: list[Group], settings: PretrainSettings, tokenizer: Tokenizer
) -> dict[str, Callable[[], object]]:
    """Works that make the trainer's batches of ten steps on one process."""
    batcher = Batcher(groups, settings, tokenizer, 0, torch.device("cpu"))
    by_index = {group.index: group for group in groups}

    def before(work: Any) -> Batch:
        examples = [
            by_index[index].corpus.render(row, tokenizer, PROMPT_LEN)
            for index, row in zip(work.groups.tolist(), work.rows.tolist(), strict=True)
        ]
        targets = [
            by_index[index].verbalizer.target_ids(example.label, False)
            for index, example in zip(work.groups.tolist(), examples, strict=True)
        ]
        return collate(examples, work.groups.tolist(), targets, tokenizer.pad_id, 0)

    def run(stream: Iterable[int], make: Callable[[Any], Batch]) -> None:
        number = next(iter(stream))
        for step in range(10 * number, 10 * number + 10):
            picks = [group.rows_of_step(step, settings.batch_size, settings.seed) for group in groups]
            for work in share_out(groups, picks, settings, 0, 1):
                make(work)

    one, many = itertools.count(), itertools.count()
    return {
        "step_render_loop": lambda: run(one, before),
        "step_batcher": lambda: run(many, lambda work: batcher.batch(work, 1.0)),
    }


def measure(folder: Path, format: str, arguments: argparse.Namespace, scratch: Path | None) -> dict[str, Any]:
    """Everything of one format at one store; `scratch`: where the rival's ids may lie, None: without it."""
    tokenizer, corpus = Tokenizer.load(folder / "tokenizer"), TaskCorpus.open(folder, format)
    n = arguments.rows
    sample = generator(9, "lengths").integers(0, len(corpus), 4 * n)
    mean_tokens = float(corpus.lengths(sample, PROMPT_LEN).mean()) + PROMPT_LEN
    print(f"\n{format}: {len(corpus):,} examples, {corpus.store.n_units:,} units", flush=True)
    works, found = readers(corpus, tokenizer, n), {}
    if scratch is not None:
        rivals, opened = datasets_readers(corpus, tokenizer, scratch / format, n, arguments.rival_rows)
        works |= rivals
        found["datasets_open_ms"] = opened * 1e3
    for work in works.values():
        work()  # pages into memory
    times = in_turn(works, arguments.rounds)
    if scratch is not None:
        shutil.rmtree(scratch / format)
    need = needed_examples(mean_tokens)
    rates = {name: n / statistics.median(values) for name, values in times.items()}
    return {
        **found,
        "examples": len(corpus),
        "units": corpus.store.n_units,
        "mean_tokens_with_prompt": mean_tokens,
        "needed_examples_a_second_8_gpus": need,
        "examples_a_second": rates,
        "seconds": times,
        "opening": opening(folder, format, 1),
        f"opening_{PROCESSES}_at_once": opening(folder, format, PROCESSES),
    }


def ratios_of(name: str, found: dict[str, Any]) -> dict[str, float]:
    """Our speed by each rival's, and by what one of eight training processes needs."""
    times = found["seconds"]
    ours = times["render_batch"]
    ratios = {f"{name}/{key}": ratio(theirs, ours) for key, theirs in times.items() if key != "render_batch"}
    need = found["needed_examples_a_second_8_gpus"] / GPUS
    ratios[f"{name}/needed_a_process"] = found["examples_a_second"]["render_batch"] / need
    return ratios


def table(found: dict[str, dict[str, Any]]) -> None:
    """Print what was measured."""
    print(f"\n{'store/format':<30}{'tokens':>8}{'need/s':>8}{'batch/s':>10}{'loop/s':>9}{'datasets/s':>11}"
          f"{'open ms':>9}{'x8 ms':>8}{'MB':>7}{'x8 MB':>7}")  # fmt: skip
    for name, one in found.items():
        rates, alone, together = one["examples_a_second"], one["opening"], one[f"opening_{PROCESSES}_at_once"]
        rival = max((rate for key, rate in rates.items() if key.startswith("datasets")), default=float("nan"))
        print(
            f"{name:<30}{one['mean_tokens_with_prompt']:>8.0f}{one['needed_examples_a_second_8_gpus']:>8.0f}"
            f"{rates['render_batch']:>10.0f}{rates['render_loop']:>9.0f}{rival:>11.0f}{alone['open_ms']:>9.2f}"
            f"{together['open_ms']:>8.2f}{alone['private_mb_after_rows']:>7.1f}"
            f"{together['private_mb_after_rows']:>7.1f}"
        )
    print(
        "MB: private memory of a process after opening and 16,384 rows; x8: the median of eight processes at once"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--build", type=Path, help="a finished build of three formats, instead of building one"
    )
    parser.add_argument(
        "--gigabytes", type=float, default=10.0, help="text that the large store stands for; 0: none"
    )
    parser.add_argument("--rows", type=int, default=8192, help="random rows a timing")
    parser.add_argument("--rival-rows", type=int, default=50_000, help="rows rendered for datasets")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        small, large = scratch / "small", scratch / "large"
        origin = f"the build {arguments.build.name}" if arguments.build else real_build(small)
        if arguments.build:
            shutil.copytree(arguments.build, small)
        store, tokenizer = SentenceStore.open(small / "store"), Tokenizer.load(small / "tokenizer")
        if not (small / "single_text").exists():
            write_corpus(small, "single_text", single_texts(store.n_units, store.n_units // 5))
        for format in FORMATS:
            found[f"small/{format}"] = measure(small, format, arguments, scratch / "datasets")
        settings = PretrainSettings(out=scratch, corpora=small, backbone="none", prompt_len=PROMPT_LEN)
        works = steps(open_groups(settings, tokenizer), settings, tokenizer)
        for work in works.values():
            work()
        step_times = in_turn(works, arguments.rounds)
        ratios["step/render_loop"] = ratio(step_times["step_render_loop"], step_times["step_batcher"])
        step_examples = (
            10 * settings.batch_size * len(FORMATS) / statistics.median(step_times["step_batcher"])
        )
        mean = statistics.mean(one["mean_tokens_with_prompt"] for one in found.values())
        ratios["step/needed_a_process"] = step_examples / (needed_examples(mean) / GPUS)
        if arguments.gigabytes:
            factor = arguments.gigabytes * 1e9 / store.manifest["characters"]
            shutil.copytree(small / "tokenizer", large / "tokenizer")
            scaled_store(store, tokenizer, large, factor)
            n_units = SentenceStore.open(large / "store").n_units
            for format in FORMATS:
                write_corpus(large, format, scaled_blocks(TaskCorpus.open(small, format), n_units, factor))
                found[f"large/{format}"] = measure(large, format, arguments, None)
                shutil.rmtree(large / format)  # one at a time: they take a gigabyte each
    for label, one in found.items():
        ratios |= ratios_of(label, one)
    table(found)
    print(f"a step's batches of four formats: {step_examples:,.0f} examples/s on one core")
    finish(
        "loader",
        {"text": origin, "gigabytes": arguments.gigabytes, "rows": arguments.rows, "batch": BATCH,
         "rounds": arguments.rounds, "prompt_len": PROMPT_LEN, "flops_a_token": FLOPS_A_TOKEN},
        ratios,
        {**found, "step_seconds": step_times, "step_examples_a_second": step_examples},
    )  # fmt: skip


if __name__ == "__main__":
    main()
