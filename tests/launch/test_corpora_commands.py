from __future__ import annotations

import inspect

from corpora.quality import QualitySettings
from launch.arguments import given
from launch.corpora_commands import corpora_build


def test_every_setting_of_quality_is_an_option_of_the_build() -> None:
    options = inspect.signature(corpora_build).parameters
    assert set(QualitySettings.model_fields) <= set(options)


def test_options_that_are_not_named_keep_the_defaults_of_the_settings() -> None:
    assert given(repair=False, ngram=None, keep_languages=["en"], similarity=0.5, duplicates="near") == {
        "keep_languages": ["en"],
        "similarity": 0.5,
        "duplicates": "near",
    }
    assert given(keep_languages=[], boilerplate=True) == {"keep_languages": [], "boilerplate": True}
