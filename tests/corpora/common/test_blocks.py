from __future__ import annotations

import re

from corpora.common.blocks import Code, Section, markdown


def test_a_code_block_that_holds_backticks_has_a_longer_fence() -> None:
    text = "a\n```sh\nls\n````\n"
    shown = markdown("title", [Section("code", (Code(text), Code("plain")))])
    fences = re.findall(r"^`{3,}", shown, flags=re.M)
    assert fences == ["`" * 5, "```", "````", "`" * 5, "```", "```"]
