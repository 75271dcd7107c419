from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.common.errors import UserError
from corpora.repair import _fixer, repair


def broken(text: str, encoding: str = "windows-1252") -> str:
    return text.encode("utf-8").decode(encoding)


@pytest.mark.parametrize(
    "text",
    [
        "It cost £1.3bn (€1.5bn).",
        "“Don’t” – she said.",
        "Ärger über Größe",
        "naïve café",
        "Привет, мир",
        "机器学习",
    ],
)
def test_text_that_was_decoded_wrongly_is_mended(text: str) -> None:
    mistaken = text.encode("utf-8").decode("latin-1")
    assert mistaken != text
    assert repair(f"First line.\n{mistaken}\nLast.") == f"First line.\n{text}\nLast."


@pytest.mark.parametrize(
    "text",
    [
        "Plain ASCII stays.",
        "It cost £5, “about” €6 – naïve café’s price… ½ of São Paulo’s.",
        "数学（すうがく）、「引用」……全角ＡＢＣ％",
        "ภาษาไทยไม่มีช่องว่าง",
        "שלום עולם \u200f(עברית) \u200e, مرحبا بالعالم؟",
        "Ελληνικά и русский – вместе: «да».",
        "ﬁ ligature, e\u0301 decomposed, &amp; entity",
    ],
)
def test_text_that_is_not_broken_stays_byte_for_byte(text: str) -> None:
    assert repair(text) == text


def test_a_broken_line_between_chinese_ones_is_mended_alone() -> None:
    assert repair("第一行，没有错。\nPrice: Â£5\n第三行……") == "第一行，没有错。\nPrice: £5\n第三行……"


MISTAKEN = st.text(alphabet="aÂÃâ£€™œé è\xa0ðŸ ?中и–\x85\x1a\ufffd", max_size=40)


@given(
    st.one_of(
        st.text(max_size=60),
        MISTAKEN,
        st.text(max_size=20).map(lambda t: t.encode("utf-8", "replace").decode("latin-1")),
    )
)
@settings(max_examples=1000)
def test_passing_over_what_cannot_be_broken_changes_nothing(text: str) -> None:
    line = text.replace("\n", " ")
    assert repair(line) == (line if line.isascii() else _fixer()(line))


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    _fixer.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'prompt-pretraining\[quality\]'"):
        repair("Ä")
    _fixer.cache_clear()
