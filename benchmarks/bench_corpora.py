"""`make bench-corpora`: whole builds beside raw sentencepiece encoding and a `datasets.map` tokenisation of the same text.

Text: `PPT_DATA/text/en` where the variable is set (its encyclopedia, unpacked first), else the embedded world's, and it
says so. Builds, each with every core and with its text kept:

    paragraphs   store and the three unlabelled formats from paragraph units
    sentences    the same from sentence units
    labelled     all four formats, with a linear labeller that reads token ids, from paragraph units

Beside them: in the same rounds, sentencepiece's own batch encoding of the paragraph lines on all cores (the better of
threads and processes, measured from the lines in memory to the ids in memory, processes started beforehand); after
them, `datasets.map` with the fast tokenizer over the same lines (the better of processes and its own threads).
Once each: the builds from compressed files, and peak memory at one and at five times the text.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import sentencepiece

from common_bench import finish, in_turn, ratio, seconds
from corpora.build import build
from corpora.build_settings import BuildSettings
from corpora.common.rng import generator
from corpora.documents import read_documents
from corpora.label_training import train
from corpora.tokenizer import Tokenizer

ROWS: dict[str, dict[str, Any]] = {
    "paragraphs": {},
    "sentences": {"unit": "sentences"},
    "labelled": {"labeller": True},
}
Child = tuple[multiprocessing.process.BaseProcess, Connection]  # a process, and how it is spoken to
UNLABELLED = ["sentence_pair", "multiple_choice", "unified"]
TIMES = 5  # as much text, for the memory
MAP_ROUNDS = 2  # of the rival that takes half a minute


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=91)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--build", help=argparse.SUPPRESS)  # settings of a child whose memory is watched
    given = parser.parse_args()
    if given.build:
        build(BuildSettings.model_validate_json(given.build))
        return
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), given.megabytes, given.workers)
        works: dict[str, Callable[[], object]] = {row: bench.row(row, bench.text) for row in ROWS}
        works["sentencepiece"] = bench.sentencepiece()
        found = in_turn(works, given.rounds)
        # Apart from the others, which would have been idle for half a minute: pages that wait so long may be taken away.
        found |= in_turn({"datasets_map": bench.datasets_map()}, MAP_ROUNDS)
        megabytes = bench.text.stat().st_size / 1e6
        ratios = {f"{row}/sentencepiece": ratio(found["sentencepiece"], found[row]) for row in ROWS}
        ratios["paragraphs/datasets_map"] = statistics.median(found["datasets_map"]) / statistics.median(
            found["paragraphs"]
        )
        raw = {
            "seconds": found,
            "megabytes_a_second": {row: megabytes / statistics.median(some) for row, some in found.items()},
            "rivals": bench.rivals,
            "compressed_seconds": bench.compressed(),
            "memory": bench.memory(),
        }
        bench.close()
    for kind, some in raw["compressed_seconds"].items():
        print(f"from {kind}: " + ", ".join(f"{row} {s:.2f} s" for row, s in some.items()))
    for size, some in raw["memory"].items():
        print(f"memory at {size}: " + ", ".join(f"{row} {mib} MiB" for row, mib in some.items()))
    for row, rate in raw["megabytes_a_second"].items():
        print(f"{row:<32} {rate:.1f} MB/s")
    settings = {
        "text": bench.origin,
        "megabytes": megabytes,
        "workers": given.workers,
        "rounds": given.rounds,
    }
    finish("corpora", settings, ratios, raw)


class Bench:
    """The text, and what is measured over it.

    Args:
        folder: for everything that is made.
        megabytes: of text, at most.
        workers: processes or threads of each side.
    """

    def __init__(self, folder: Path, megabytes: int, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.text = folder / "text.jsonl"
        sources, self.tokenizer, reviews, self.origin = _data(folder)
        size = 0
        with self.text.open("w", encoding="utf-8") as file:
            for document in read_documents(sources):
                line = json.dumps({"text": document.text}, ensure_ascii=False) + "\n"
                size += len(line.encode())
                if size > megabytes * 1_000_000:
                    break
                file.write(line)
        train(reviews, folder / "labeller", tokenizer=self.tokenizer)
        self.rivals: dict[str, float] = {}
        self._builder = self._start(_build)
        self._encoders: list[Child] = []

    def settings(self, row: str, text: Path) -> BuildSettings:
        """A build of a row."""
        more = dict(ROWS[row])
        labelled = more.pop("labeller", False)
        return BuildSettings(
            text=[str(text)],
            tokenizer=self.tokenizer,
            out=str(self.folder / "build"),
            formats=None if labelled else UNLABELLED,
            labeller=str(self.folder / "labeller") if labelled else None,
            workers=self.workers,
            **more,
        )

    def row(self, row: str, text: Path) -> Callable[[], object]:
        """Builds a row from nothing, in a process that holds nothing else, as the command's does."""
        settings = self.settings(row, text).model_dump_json()

        def run() -> None:
            _, here = self._builder
            here.send(settings)
            here.recv()

        return run

    def _start(self, work: Callable[..., None], *arguments: object) -> Child:
        """Start a process that waits for messages."""
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=work, args=(*arguments, there))
        process.start()
        here.recv()
        return process, here

    def lines(self) -> list[str]:
        """The paragraph lines of the text."""
        return list(_lines(self.text))

    def sentencepiece(self) -> Callable[[], object]:
        """The better way of encoding all lines with sentencepiece alone."""
        model = _model(self.tokenizer)
        lines = self.lines()
        self._encoders = [
            self._start(_encode, self.tokenizer, self.text, index, self.workers)
            for index in range(self.workers)
        ]

        def processes() -> None:
            for _, here in self._encoders:
                here.send("encode")
            for _, here in self._encoders:
                here.recv()

        processes()  # the first time takes memory from the system
        ways: dict[str, Callable[[], object]] = {
            "sentencepiece, threads": lambda: model.encode(lines, num_threads=self.workers),
            "sentencepiece, processes": processes,
        }
        return self._better(ways)

    def datasets_map(self) -> Callable[[], object]:
        """The better way of tokenising all lines with `datasets.map` and the fast tokenizer."""
        import datasets
        from transformers import AutoTokenizer

        Tokenizer.load(self.tokenizer).save(self.folder)
        fast = AutoTokenizer.from_pretrained(self.folder)
        table = datasets.Dataset.from_dict({"text": self.lines()})
        datasets.disable_progress_bars()
        datasets.disable_caching()

        def mapped(processes: int | None) -> Callable[[], object]:
            def run() -> None:
                os.environ["TOKENIZERS_PARALLELISM"] = "false" if processes else "true"
                table.map(
                    lambda batch: {"ids": fast(batch["text"], add_special_tokens=False)["input_ids"]},
                    batched=True,
                    num_proc=processes,
                    remove_columns=["text"],
                )

            return run

        # The run with processes comes first: threads, once used, forbid to fork.
        ways = {"datasets.map, processes": mapped(self.workers), "datasets.map, threads": mapped(None)}
        return self._better(ways)

    def _better(self, ways: dict[str, Callable[[], object]]) -> Callable[[], object]:
        for name, way in ways.items():
            self.rivals[name] = seconds(way)
            print(f"{name}: {self.rivals[name]:.2f} s", flush=True)
        return ways[min(ways, key=self.rivals.__getitem__)]

    def compressed(self) -> dict[str, dict[str, float]]:
        """Seconds of each row from a compressed file."""
        import gzip
        import lzma

        data = self.text.read_bytes()
        packed = {
            "gz": gzip.compress(data, 6),
            "xz": lzma.compress(data, preset=3),
            "zst": pa.compress(data, "zstd", asbytes=True),
        }
        found: dict[str, dict[str, float]] = {}
        for kind, content in packed.items():
            path = self.folder / f"text.jsonl.{kind}"
            path.write_bytes(content)
            found[kind] = {row: seconds(self.row(row, path)) for row in ROWS}
        return found

    def memory(self) -> dict[str, dict[str, int]]:
        """Peak private memory of a build's processes together, in MiB, at the text and at several times as much."""
        large = self.folder / "large.jsonl"
        with large.open("w", encoding="utf-8") as file:
            for copy in range(TIMES):
                rng = generator(copy, "bench corpora")
                for document in read_documents([self.text]):
                    # Other words in other places: no paragraph stands there twice.
                    lines = [" ".join(rng.permutation(line.split(" "))) for line in document.text.split("\n")]
                    file.write(json.dumps({"text": "\n".join(lines)}, ensure_ascii=False) + "\n")
        found: dict[str, dict[str, int]] = {}
        for name, text in (("1 x", self.text), (f"{TIMES} x", large)):
            found[name] = {row: self._peak(row, text) for row in ROWS}
        return found

    def _peak(self, row: str, text: Path) -> int:
        shutil.rmtree(self.folder / "build", ignore_errors=True)
        settings = self.settings(row, text).model_dump_json()
        command = [sys.executable, __file__, "--build", settings]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        peak = 0
        while child.poll() is None:
            peak = max(peak, _private(child.pid))
            time.sleep(0.05)
        assert child.returncode == 0, f"the build of {row} ended with {child.returncode}"
        return peak >> 20

    def close(self) -> None:
        """End the processes."""
        for process, here in (self._builder, *self._encoders):
            here.close()
            process.join()


def _private(pid: int) -> int:
    """Anonymous bytes of a process and its children; what is mapped from files the system can take back."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue
            total += sum(
                int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon")
            )
    except psutil.Error:
        pass
    return total


def _data(folder: Path) -> tuple[list[str], str, str, str]:
    """Sources, tokenizer, reviews, and where they are from."""
    data = os.environ.get("PPT_DATA")
    if data:
        return (
            [f"{data}/text/en/enwiki_2015.jsonl.xz"],
            f"{data}/tokenizers/t5_spiece.model",
            f"{data}/en/stars5/combined_train.jsonl.gz",
            "PPT_DATA/text/en",
        )
    from launch.pocket.tasks import write_reviews
    from launch.pocket.world import write_documents

    print("PPT_DATA is unset: generated text of the embedded world")
    write_documents(folder / "world.jsonl", 60_000, seed=5)
    write_reviews(folder / "reviews.jsonl", 3_000, seed=5)
    pocket = Path(__file__).parents[1] / "launch" / "pocket" / "backbone"
    return [str(folder / "world.jsonl")], str(pocket), str(folder / "reviews.jsonl"), "generated"


def _model(tokenizer: str) -> sentencepiece.SentencePieceProcessor:
    path = Path(tokenizer)
    return sentencepiece.SentencePieceProcessor(
        model_file=str(path / "spiece.model" if path.is_dir() else path)
    )


def _lines(text: Path) -> Iterator[str]:
    with text.open(encoding="utf-8") as file:
        for record in file:
            yield from (line for line in json.loads(record)["text"].split("\n") if line.strip())


def _build(pipe: Connection) -> None:
    """A process that builds what it is told to, from nothing."""
    pipe.send("ready")
    while True:
        try:
            settings = BuildSettings.model_validate_json(pipe.recv())
        except EOFError:
            return
        shutil.rmtree(settings.out, ignore_errors=True)
        build(settings)
        pipe.send("done")


def _encode(tokenizer: str, text: Path, index: int, count: int, pipe: Connection) -> None:
    """A process that encodes its share of the lines whenever it is told to."""
    model = _model(tokenizer)
    lines = list(_lines(text))[index::count]
    pipe.send("ready")
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        model.encode(lines)
        pipe.send("done")


if __name__ == "__main__":
    main()
