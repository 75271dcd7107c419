"""One face for every vocabulary: sentencepiece's own where there is a model, else `transformers`.

Patterns are made of single pieces that are looked up by name (`?`, `.`, `;`, the option letters), so that
ids never depend on what stands around a piece in a text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.files import write_bytes_atomic, write_json
from corpora.common.hub import hub_reachable
from corpora.word_encoder import SPACE, WordEncoder, splits_at_spaces

IntArray = NDArray[np.int32]

LETTERS = tuple("ABCDEFGHIJKLMNOP")
GLUE = ("?", ".", ";")
# What every vocabulary must have as single pieces. Train sentencepiece with
# `required_chars="".join(REQUIRED_PIECES)`; as `user_defined_symbols` they would also be cut out of words.
REQUIRED_PIECES = (*GLUE, *LETTERS)
SENTINELS = 100  # that T5 puts above its pieces
MODEL_FILE = "spiece.model"


class Tokenizer(ABC):
    """A vocabulary and how text becomes ids; get one with `load`.

    Attributes:
        name: what it was loaded from.
        size: number of ids, sentinels included.
        pad_id: `<pad>`.
        eos_id: `</s>`.
        unk_id: `<unk>`, what text outside the vocabulary becomes.
    """

    name: str
    size: int
    pad_id: int
    eos_id: int
    unk_id: int

    @staticmethod
    def load(name_or_path: str | Path) -> Tokenizer:
        """Load a tokenizer.

        Args:
            name_or_path: a folder with `spiece.model` or `tokenizer.json`, a sentencepiece `*.model` file,
                or a name on the Hugging Face hub.

        Raises:
            UserError: nothing loadable is there, or it lacks a piece that the patterns need.
        """
        path, name = Path(name_or_path), str(name_or_path)
        if path.is_file():
            if path.suffix != ".model":
                raise UserError(f"{name} is no tokenizer; expected a sentencepiece *.model file or a folder")
            tokenizer: Tokenizer = SentencePieceTokenizer(path, name, SENTINELS)
        elif (path / MODEL_FILE).is_file():
            tokenizer = SentencePieceTokenizer(path / MODEL_FILE, name, _extra_ids(path))
        elif path.is_dir() and not (path / "tokenizer.json").is_file():
            raise UserError(f"{name} holds no tokenizer; expected spiece.model or tokenizer.json in it")
        else:
            tokenizer = _from_hub(name)
        _ = tokenizer.letters
        for char in GLUE:
            tokenizer.glue(char)
        tokenizer.sentinel(1)
        return tokenizer

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest unsigned type that holds every id: uint16 or uint32."""
        return np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)

    def encode(self, texts: Sequence[str]) -> list[IntArray]:
        """Token ids of each text, without special tokens.

        Args:
            texts: any strings; text that spells a sentinel or `</s>` does not become one.

        Returns:
            One int32 array [L] for each text, views of one flat array.
        """
        flat, starts = self.encode_flat(texts)
        return [flat[start:end] for start, end in itertools.pairwise(starts.tolist())]

    def encode_flat(self, texts: Sequence[str]) -> tuple[IntArray, NDArray[np.int64]]:
        """`encode` without cutting: int32 [L] ids of N texts end to end, and int64 [N + 1], where each starts."""
        try:
            flat, starts = self._encode(texts)
        except (UnicodeEncodeError, TypeError):  # half of a surrogate pair, which JSON may hold, is no UTF-8
            flat, starts = self._encode([text.encode("utf-8", "replace").decode() for text in texts])
        if self._never_text:  # special pieces of the model's own could be spelt by a text
            flat[np.isin(flat, list(self._never_text))] = self.unk_id
        return flat, starts

    def piece_id(self, piece: str) -> int:
        """The id of one piece, looked up by name.

        Raises:
            UserError: the vocabulary has no such piece.
        """
        found = self._find(piece)
        if found is None:
            raise UserError(
                f'tokenizer {self.name} has no single piece "{piece}"; the patterns need '
                f"{' '.join(GLUE)}, the letters A to P and <extra_id_0>, each as one piece: take a T5 or mT5 "
                "vocabulary, or one of `ppt backbone vocab`"
            )
        return found

    def glue(self, char: str) -> int:
        """The id of a bare `?`, `.` or `;`."""
        return self.piece_id(char)

    @cached_property
    def letters(self) -> tuple[int, ...]:
        """Ids of the bare pieces A to P: options' letters, and the labels of a choice."""
        return tuple(self.piece_id(letter) for letter in LETTERS)

    def word_ids(self, word: str) -> tuple[int, ...]:
        """Ids of a label word as it stands after a space (`▁yes`); one or several pieces.

        Raises:
            UserError: the word is empty or has a part that the vocabulary does not know.
        """
        ids = tuple(int(i) for i in self.encode([word])[0])
        if not ids or self.unk_id in ids:
            raise UserError(
                f'label word "{word}" is unknown to tokenizer {self.name}; choose a word that it can spell'
            )
        return ids

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The names of ids, one each."""
        return [self._piece(int(i)) for i in ids]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary: equal for tokenizers that give equal ids."""
        lines = "".join(f"{line}\n" for line in self._vocabulary())
        return hashlib.sha256(lines.encode()).hexdigest()

    @abstractmethod
    def sentinel(self, index: int) -> int:
        """The id of `<extra_id_{index}>`."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Readable text of ids; sentinels stand as `<extra_id_0>`."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write files from which `load` and transformers' AutoTokenizer give the same ids."""

    _never_text: frozenset[int] = frozenset()

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> tuple[IntArray, NDArray[np.int64]]: ...

    @abstractmethod
    def _find(self, piece: str) -> int | None: ...

    @abstractmethod
    def _piece(self, index: int) -> str: ...

    @abstractmethod
    def _vocabulary(self) -> Iterable[str]: ...


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model in T5's layout, with sentinels among its pieces or above them.

    Args:
        model: the model file.
        name: what to call it in messages.
        extra_ids: sentinels above the pieces, where the model has none of its own.
    """

    def __init__(self, model: Path, name: str, extra_ids: int) -> None:
        import sentencepiece

        self.name = name
        self._model = model.read_bytes()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise UserError(f"{model} is no sentencepiece model") from error
        self._n_pieces = self._processor.get_piece_size()
        self.pad_id, self.eos_id = self._processor.pad_id(), self._processor.eos_id()
        self.unk_id = self._processor.unk_id()
        for id_, what in ((self.pad_id, "<pad>"), (self.eos_id, "</s>"), (self.unk_id, "<unk>")):
            if id_ < 0:
                raise UserError(f"{model} has no {what}; expected a model with <pad>, </s> and <unk>")
        own = (self._own_sentinel(i) for i in range(SENTINELS))
        self._own_ids = tuple(id_ for id_ in own if id_ is not None)
        self._never_text = frozenset(self._own_ids)
        self._extra_ids = 0 if self._own_ids else (extra_ids or SENTINELS)
        self.size = self._n_pieces + self._extra_ids

    def _own_sentinel(self, index: int) -> int | None:
        for piece in (f"<extra_id_{index}>", f"{SPACE}<extra_id_{index}>"):  # mT5 has the second
            found = self._processor.piece_to_id(piece)
            if found != self.unk_id:
                return int(found)
        return None

    def sentinel(self, index: int) -> int:
        """See `Tokenizer.sentinel`: T5 counts them down from its last id."""
        n = len(self._own_ids) or self._extra_ids
        if not 0 <= index < n:
            raise UserError(f"tokenizer {self.name} has no <extra_id_{index}>; it has {n} sentinels")
        return self._own_ids[index] if self._own_ids else self.size - 1 - index

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        parts: list[str] = []
        for is_sentinel, group in itertools.groupby((int(i) for i in ids), self._is_sentinel):
            if is_sentinel:
                parts += [self._piece(i).lstrip(SPACE) for i in group]
            else:
                parts.append(self._processor.decode(list(group)).strip())
        return " ".join(part for part in parts if part)

    def save(self, folder: str | Path) -> None:
        """See `Tokenizer.save`."""
        folder = Path(folder)
        write_bytes_atomic(folder / MODEL_FILE, self._model)
        config = {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": self._extra_ids,
            "pad_token": self._piece(self.pad_id),
            "eos_token": self._piece(self.eos_id),
            "unk_token": self._piece(self.unk_id),
        }
        write_json(folder / "tokenizer_config.json", config)

    def _is_sentinel(self, index: int) -> bool:
        return index >= self._n_pieces or index in self._never_text

    def _encode(self, texts: Sequence[str]) -> tuple[IntArray, NDArray[np.int64]]:
        if self._words is None:
            return _joined(self._lists(list(texts)))
        return self._words.encode(texts)

    @cached_property
    def _words(self) -> WordEncoder | None:
        pieces = [self._processor.id_to_piece(index) for index in range(self._n_pieces)]
        return WordEncoder(self._lists) if splits_at_spaces(pieces, self._lists) else None

    def _lists(self, texts: list[str]) -> list[list[int]]:
        lists: list[list[int]] = self._processor.encode(texts, out_type=int, num_threads=1)
        return lists

    def _find(self, piece: str) -> int | None:
        found = int(self._processor.piece_to_id(piece))
        return found if self._processor.id_to_piece(found) == piece else None

    def _piece(self, index: int) -> str:
        if index >= self._n_pieces:
            return f"<extra_id_{self.size - 1 - index}>"
        return str(self._processor.id_to_piece(index))

    def _vocabulary(self) -> Iterable[str]:
        for index in range(self._n_pieces):
            yield f"{self._processor.id_to_piece(index)}\t{self._processor.get_score(index)!r}"
        yield f"{self._extra_ids} sentinels above"


class HubTokenizer(Tokenizer):
    """Any tokenizer of the transformers library that knows `<extra_id_0>`.

    Args:
        tokenizer: as `AutoTokenizer` gives it.
        name: what to call it in messages.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name, self._tokenizer = name, tokenizer
        self.size = len(tokenizer)
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._names = {index: piece for piece, index in self._ids.items()}
        for token in ("pad", "eos", "unk"):
            id_ = getattr(tokenizer, f"{token}_token_id")
            if id_ is None:
                raise UserError(f"tokenizer {name} has no {token} token; expected an encoder-decoder's")
            setattr(self, f"{token}_id", int(id_))
        self._never_text = frozenset(int(i) for i in tokenizer.all_special_ids) - {self.unk_id}

    def sentinel(self, index: int) -> int:
        """See `Tokenizer.sentinel`."""
        return self.piece_id(f"<extra_id_{index}>")

    def word_ids(self, word: str) -> tuple[int, ...]:
        """See `Tokenizer.word_ids`; byte-level vocabularies need the space itself."""
        first = self._names.get(int(next(iter(self.encode([word])[0]), self.unk_id)), "")
        return super().word_ids(word if first.startswith(SPACE) else f" {word}")

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        return str(self._tokenizer.decode([int(i) for i in ids]))

    def save(self, folder: str | Path) -> None:
        """See `Tokenizer.save`."""
        self._tokenizer.save_pretrained(str(folder))

    def _encode(self, texts: Sequence[str]) -> tuple[IntArray, NDArray[np.int64]]:
        if not texts:
            return _joined([])
        return _joined(
            self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )

    def _find(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def _piece(self, index: int) -> str:
        return self._names[index]

    def _vocabulary(self) -> Iterable[str]:
        for index in sorted(self._names):
            yield f"{index}\t{self._names[index]}"


def _joined(lists: list[list[int]]) -> tuple[IntArray, NDArray[np.int64]]:
    """Lists of ids as one array, and where each starts."""
    starts = np.zeros(len(lists) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, lists), np.int64, len(lists)), out=starts[1:])
    flat = np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(starts[-1]))
    return flat, starts


def _extra_ids(folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return SENTINELS
    try:
        return int(json.loads(path.read_text(encoding="utf-8")).get("extra_ids", SENTINELS))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not the JSON object of a tokenizer") from error


def _from_hub(name: str) -> Tokenizer:
    """A folder or hub name: the sentencepiece model where the hub has one, else what AutoTokenizer makes of it."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    local = not os.path.isdir(name) and not hub_reachable()

    def attempt(load: Callable[[], Any]) -> Any:
        try:
            return load()
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            reason = "the hub cannot be reached" if local else reason
            raise UserError(
                f'no tokenizer at "{name}" ({reason}); expected a folder, a *.model file or a hub name'
            ) from error

    if not os.path.isdir(name):
        lenient: dict[str, Any] = {
            "local_files_only": local,
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": False,
        }
        model = attempt(lambda: cached_file(name, MODEL_FILE, **lenient))
        if model is not None:
            config = attempt(lambda: cached_file(name, "tokenizer_config.json", **lenient))
            extra = _extra_ids(Path(config).parent) if config is not None else SENTINELS
            return SentencePieceTokenizer(Path(model), name, extra)
    return HubTokenizer(attempt(lambda: AutoTokenizer.from_pretrained(name, local_files_only=local)), name)
