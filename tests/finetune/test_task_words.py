"""Words for a user's labels."""

from __future__ import annotations

from finetune.task_words import in_order, words_for


def test_words_are_the_labels_own_where_they_can_be_read() -> None:
    assert words_for(["NEWS", "sci_fi", "Society & Culture"]) == ["news", "sci fi", "Society & Culture"]
    assert words_for(["体育", "财经"]) == ["体育", "财经"]
    assert words_for(["POSITIVE", "negative", "Neutral"]) == ["good", "bad", "maybe"]
    for codes in (
        ["0", "1"],
        ["LABEL_0", "LABEL_1"],
        ["c1", "c2"],
        ["A", "B"],
        ["class 1", "class 2"],
        ["3.5", "4"],
    ):
        assert words_for(codes) is None, codes
    assert words_for(["neutral", "entailment"], "zh") == ["也许", "是"]
    assert words_for(["neutral", "positive"], "zh") == ["一般", "好"]
    assert words_for(["5 stars", "1 star"]) == ["great", "terrible"]
    assert in_order(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert in_order(["positive", "neutral", "negative"]) == ["negative", "neutral", "positive"]
