"""Words for a user's labels: what pre-trained prompts have learnt to say where it fits, else the labels' own names."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Scales, lowest first: names of labels and the words for them, those of the pre-training formats.
_SCALES: tuple[dict[str, str], ...] = (
    {"very negative": "terrible", "negative": "bad", "neutral": "maybe", "positive": "good", "very positive": "great"},
    {"neg": "bad", "neu": "maybe", "pos": "good"},
    {"1 star": "terrible", "2 stars": "bad", "3 stars": "maybe", "4 stars": "good", "5 stars": "great"},
    {"contradiction": "no", "neutral": "maybe", "entailment": "yes"},
    {"not_entailment": "no", "entailment": "yes"},
    {"false": "no", "true": "yes"},
    {"no": "no", "maybe": "maybe", "yes": "yes"},
    {"different": "no", "same": "yes"},
    {"not_duplicate": "no", "duplicate": "yes"},
    {"not_equivalent": "no", "equivalent": "yes"},
    {"terrible": "terrible", "bad": "bad", "maybe": "maybe", "good": "good", "great": "great"},
    {"非常消极": "很差", "消极": "差", "中性": "一般", "积极": "好", "非常积极": "很好"},
    {"负面": "差", "中性": "一般", "正面": "好"},
    {"差评": "差", "中评": "一般", "好评": "好"},
    {"矛盾": "否", "中立": "也许", "蕴含": "是"},
    {"不同": "否", "相同": "是"},
    {"不相似": "否", "相似": "是"},
    {"否": "否", "也许": "也许", "是": "是"},
    {"错": "否", "对": "是"},
    {"错误": "否", "正确": "是"},
)  # fmt: skip
# The words of the Chinese formats in the place of the English ones; of opinions, the middle one is another.
_CHINESE = {
    "no": "否",
    "maybe": "也许",
    "yes": "是",
    "terrible": "很差",
    "bad": "差",
    "good": "好",
    "great": "很好",
}
_CHINESE_MIDDLE = "一般"
_CODE = re.compile(
    r"_*[a-z]*_*label_*\d+|[a-z]{0,3}[-_ ]?\d+|[\d.,:/+-]+|(?:class|category|type|topic)[-_ ]?\w|[a-z]", re.I
)


def scale_of(labels: Sequence[str]) -> dict[str, str] | None:
    """The known scale that all labels stand on, case aside."""
    lower = [_plain(label) for label in labels]
    return next((scale for scale in _SCALES if all(label in map(_plain, scale) for label in lower)), None)


def in_order(labels: Sequence[str]) -> list[str]:
    """Labels in the order of their words: of a scale from its low end, of numbers by size, else by name."""
    scale = scale_of(labels)
    if scale is not None:
        places = [_plain(name) for name in scale]
        return sorted(labels, key=lambda label: places.index(_plain(label)))
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", label) for label in labels):
        return sorted(labels, key=float)
    return sorted(labels)


def words_for(labels: Sequence[str], language: str = "en") -> list[str] | None:
    """A word for each label, or None where a label's name is a number or a code that says nothing."""
    scale = scale_of(labels)
    if scale is not None:
        by_name = {_plain(name): word for name, word in scale.items()}
        known = [by_name[_plain(label)] for label in labels]
        if language != "zh":
            return known
        chinese = _CHINESE | ({"maybe": _CHINESE_MIDDLE} if "good" in scale.values() else {})
        return [chinese.get(word, word) for word in known]
    words = [_spoken(label) for label in labels]
    if len(set(words)) < len(words) or any(word is None for word in words):
        return None
    return [word for word in words if word is not None]


def _plain(label: str) -> str:
    return label.strip().lower().replace("-", "_").replace(" ", "_")


def _spoken(label: str) -> str | None:
    """A label's name as it is read: no underscores, no cries."""
    text = " ".join(label.replace("_", " ").replace(",", " ").split())
    if not any(map(str.isalpha, text)) or _CODE.fullmatch(label.strip()):
        return None
    return text.lower() if text.isupper() and len(text) > 3 else text
