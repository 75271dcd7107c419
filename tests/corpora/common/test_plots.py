"""The look of pictures: what has to fit in."""

from __future__ import annotations

from corpora.common.plots import legend_shape


def test_a_legend_has_as_many_columns_as_its_labels_leave_room_for() -> None:
    assert legend_shape(7, 7, len("Unified PPT")) == legend_shape(7, 7) == (7, 1)
    assert legend_shape(11, 1, len("Vanilla PT (wording great terrible)")) == (2, 6)
    assert legend_shape(11, 4, len("Vanilla PT (wording great terrible)")) == (4, 3)
    assert legend_shape(2, 1, 200) == (1, 2)
