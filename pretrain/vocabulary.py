"""The job behind `ppt backbone vocab`: a sentencepiece vocabulary in T5's layout."""

from __future__ import annotations

import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from corpora.common.errors import UserError
from corpora.common.files import atomic_folder, library_versions, write_manifest
from corpora.common.progress import Progress, say
from corpora.common.rng import generator
from corpora.documents import Counts, find_sources, read_documents
from corpora.tokenizer import REQUIRED_PIECES, Tokenizer

MAX_CHARACTERS = 12_000_000  # of text that the trainer sees; more costs minutes and changes little
LINE_CHARACTERS = (
    1_000  # longer lines are cut: sentencepiece leaves out lines of more than a few thousand bytes
)
THREADS = 2  # fixed: the sums of the trainer depend on how the work is divided
COVERAGE = {
    "en": 1.0,
    "zh": 0.9995,
}  # share of the text's characters that get a piece of their own (sentencepiece's advice)
RARE = 0.9998  # coverage of other scripts where the text is large
LONGEST_WORD = 16  # characters, sentencepiece's own limit of a piece
PUNCTUATION = ".,;:!?\"'()[]"
CJK = re.compile("[\u3400-\u9fff]")


def sample_lines(lines: Iterable[str], max_characters: int, seed: int = 0) -> tuple[list[str], int]:
    """Keep every line, or every 2nd, 4th, ... so that they hold at most `max_characters`.

    Args:
        lines: any number.
        max_characters: of the lines kept.
        seed: decides which half stays at each thinning.

    Returns:
        (lines kept, stride).
    """
    rng = generator(seed, "vocabulary")
    kept: list[str] = []
    stride, phase, characters = 1, 0, 0
    for number, line in enumerate(lines):
        if number % stride != phase:
            continue
        kept.append(line)
        characters += len(line)
        while characters > max_characters and len(kept) > 1:
            half = int(rng.integers(2))
            kept = kept[half::2]
            phase += half * stride
            stride *= 2
            characters = sum(map(len, kept))
    return kept, stride


def _lines(sources: Sequence[str], text_field: str, counts: Counts, progress: Progress) -> Iterator[str]:
    for document in read_documents(list(sources), text_field=text_field, counts=counts):
        progress.advance()
        for line in document.text.split("\n"):
            for start in range(0, len(line), LINE_CHARACTERS):
                piece = line[start : start + LINE_CHARACTERS].strip()
                if piece:
                    yield piece


def seed_words(lines: Sequence[str], count: int) -> str:
    """The most frequent words, each followed by a full stop, as one line more for the trainer.

    sentencepiece only takes a substring for a candidate piece that stands in two different words: where "the" is always
    followed by a space, it would be spelt letter by letter. Seen in small, regular text; harmless in large text.
    """
    found = Counter(word for line in lines for word in line.split())
    plain: Counter[str] = Counter()
    for word, number in found.items():
        if len(word.strip(PUNCTUATION)) <= LONGEST_WORD:
            plain[word.strip(PUNCTUATION)] += number
    chosen = sorted(plain, key=lambda word: (-plain[word], word))[:count]
    return " ".join(word + "." for word in chosen if word)


def train_vocabulary(
    sources: Sequence[str],
    size: int,
    out: str | Path,
    language: str = "auto",
    max_characters: int = MAX_CHARACTERS,
    text_field: str = "text",
    seed: int = 0,
) -> Tokenizer:
    """Train a unigram vocabulary with `<pad>` 0, `</s>` 1, `<unk>` 2 and 100 sentinels after the pieces.

    The glue pieces `?` `.` `;` and the option letters `A` ... `P` are always single pieces. The same text gives the same bytes.

    Args:
        sources: raw text, as `ppt corpora build --text` takes it.
        size: pieces, without the sentinels.
        out: folder to make; loads with `Tokenizer.load` and `AutoTokenizer.from_pretrained`.
        language: `en`, `zh` or `auto`; decides how many rare characters get a piece.
        max_characters: of text that is looked at; lines are thinned out evenly beyond it.
        text_field: field or column that holds the text.
        seed: of the thinning.

    Raises:
        UserError: no text, a bad size or language, or text too small for the size.
    """
    import sentencepiece

    if language not in ("auto", *COVERAGE):
        raise UserError(f'language is "{language}"; expected one of auto, {", ".join(COVERAGE)}')
    if size < len(REQUIRED_PIECES) + 4:
        raise UserError(
            f"a vocabulary of {size} pieces is too small; the patterns alone need {len(REQUIRED_PIECES)}"
        )
    counts = Counts()
    with Progress("reading", None, "documents") as progress:
        lines, stride = sample_lines(_lines(sources, text_field, counts, progress), max_characters, seed)
    for line in counts.lines():
        say(line)
    if not lines:
        raise UserError(f"{', '.join(map(str, sources))}: no text found")
    if language == "auto":
        probe = "".join(lines[:: max(len(lines) // 1000, 1)])
        language = "zh" if len(CJK.findall(probe)) > 0.2 * len(probe) else "en"
    characters = sum(map(len, lines))
    coverage = COVERAGE[language]
    if language == "en" and characters > 2_000_000:
        coverage = RARE  # web text holds thousands of stray characters
    say(f"training {size} pieces on {characters:,} characters ({language}; one line in {stride})")
    extra = [] if language == "zh" else [seed_words(lines, size)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*lines, *extra, " ".join(REQUIRED_PIECES)]),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=coverage,
            required_chars="".join(REQUIRED_PIECES),
            max_sentence_length=8 * LINE_CHARACTERS,
            hard_vocab_limit=False,
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"cannot make {size} pieces of this text ({reason}); choose another size") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spiece.model"
        path.write_bytes(model.getvalue())
        tokenizer = Tokenizer.load(str(path))
        for piece in REQUIRED_PIECES:
            tokenizer.piece_id(piece)
        with atomic_folder(out) as partial:
            tokenizer.save(partial)
            write_manifest(
                partial,
                "vocabulary",
                {
                    "tokenizer_fingerprint": tokenizer.fingerprint,
                    "size": tokenizer.size,
                    "asked": size,
                    "language": language,
                    "characters": characters,
                    "stride": stride,
                    "seed": seed,
                    "documents": counts.documents,
                    "dropped": counts.dropped,
                    "sources": [source.identity() for source in find_sources(list(sources))],
                    "versions": library_versions("sentencepiece"),
                },
            )
    if tokenizer.size - 100 < size:
        say(f"the text gave {tokenizer.size - 100} pieces, fewer than the {size} asked for")
    return Tokenizer.load(str(out))
