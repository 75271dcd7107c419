"""`make bench-corpora`: a build of store and three formats beside raw sentencepiece encoding of the same lines.

Text: `PPT_DATA/text/en` where the variable is set (unpacked first), else the embedded world's, and it says so. A later
release measures more rows; this one measures paragraph units.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import sentencepiece

from common_bench import finish, in_turn, ratio
from corpora.build import build
from corpora.build_settings import BuildSettings
from corpora.documents import read_documents


def unpacked(folder: Path, megabytes: int) -> tuple[Path, str, str]:
    """One JSONL file of at most `megabytes` of text; the tokenizer; where the text is from."""
    path = folder / "text.jsonl"
    data = os.environ.get("PPT_DATA")
    if data:
        sources, tokenizer, origin = (
            [f"{data}/text/en"],
            f"{data}/tokenizers/t5_spiece.model",
            "PPT_DATA/text/en",
        )
    else:
        from launch.pocket.world import write_documents

        print("PPT_DATA is unset: generated text of the embedded world")
        write_documents(folder / "world.jsonl", 60_000, seed=5)
        pocket = Path(__file__).parents[1] / "launch" / "pocket" / "backbone"
        sources, tokenizer, origin = [str(folder / "world.jsonl")], str(pocket), "generated"
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for document in read_documents(sources):
            line = json.dumps({"text": document.text}, ensure_ascii=False) + "\n"
            size += len(line.encode())
            if size > megabytes * 1_000_000:
                break
            file.write(line)
    return path, tokenizer, origin


def sentencepiece_model(tokenizer: str) -> sentencepiece.SentencePieceProcessor:
    """The rival: sentencepiece alone, its own batch encoding on all threads."""
    path = Path(tokenizer)
    return sentencepiece.SentencePieceProcessor(
        model_file=str(path / "spiece.model" if path.is_dir() else path)
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, tokenizer_name, origin = unpacked(folder, arguments.megabytes)
        model = sentencepiece_model(tokenizer_name)
        lines = [
            line
            for record in path.read_text(encoding="utf-8").splitlines()
            for line in json.loads(record)["text"].split("\n")
            if line
        ]

        def ours() -> None:
            shutil.rmtree(folder / "build", ignore_errors=True)
            build(
                BuildSettings(
                    text=[str(path)],
                    tokenizer=tokenizer_name,
                    out=str(folder / "build"),
                    formats=["sentence_pair", "multiple_choice", "unified"],
                    language="en",
                    workers=arguments.workers,
                )
            )

        def raw() -> None:
            model.encode(lines, num_threads=arguments.workers)

        found = in_turn({"build": ours, "sentencepiece": raw}, arguments.rounds)
        megabytes = path.stat().st_size / 1e6
    finish(
        "corpora",
        {"text": origin, "megabytes": megabytes, "workers": arguments.workers, "rounds": arguments.rounds},
        {"paragraphs/sentencepiece": ratio(found["sentencepiece"], found["build"])},
        {
            "seconds": found,
            "megabytes_a_second": {key: megabytes / statistics.median(value) for key, value in found.items()},
        },
    )


if __name__ == "__main__":
    main()
