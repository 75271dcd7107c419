"""Tests of corpora/reviews.py."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from corpora.common.errors import UserError
from corpora.reviews import FIVE_WORDS, Review, read_reviews

GOOD = json.dumps({"text": "the  soup\twas nice", "label": 3})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "reviews.jsonl line 3: not valid JSON"),
        ("[1]", "reviews.jsonl line 3: expected an object, found list"),
        ('{"text": "x"}', 'reviews.jsonl line 3: no field "label"'),
        ('{"text": "", "label": 1}', "reviews.jsonl line 3: field \"text\" is ''; expected text"),
        ('{"text": "x", "label": 5}', 'line 3: field "label" is 5; expected one of 0, 1, 2, 3, 4, terrible'),
        (
            '{"text": "x", "label": "gret"}',
            "field \"label\" is 'gret'; expected one of 0, 1, 2, 3, 4, terrible",
        ),
        ('{"text": "x", "label": true}', 'field "label" is True'),
        ('{"text": "\\ud800", "label": 1}', "line 3: not UTF-8"),
    ],
)
def test_a_bad_line_is_an_error_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "reviews.jsonl").write_text(f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(UserError) as error:
        read_reviews(tmp_path / "reviews.jsonl", FIVE_WORDS)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_reviews(tmp_path / "none.jsonl", FIVE_WORDS)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no reviews in this file"):
        read_reviews(tmp_path / "empty.jsonl", FIVE_WORDS)


def test_compressed_csv_is_read_and_labels_may_be_words_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv.gz"
    path.write_bytes(gzip.compress(b'text,label\n"nice, really",good\n"two\nlines",0\n'))
    assert read_reviews(path, FIVE_WORDS) == [Review("nice, really", 3), Review("two lines", 0)]
