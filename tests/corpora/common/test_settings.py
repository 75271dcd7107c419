"""Facts about settings, errors and random streams."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from corpora.common.errors import UserError, nearest
from corpora.common.rng import generator
from corpora.common.settings import Settings, load_settings, save_settings


class Inner(Settings):
    rate: float = 0.1


class Outer(Settings):
    steps: int = Field(default=10, gt=0)
    inner: Inner = Inner()
    names: tuple[str, ...] = ()


def test_overrides_reach_nested_keys_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("steps: 5\n")
    one = load_settings(Outer, path, ["inner.rate=0.5", "names=[a, b]"])
    two = load_settings(Outer, path, ["names=[a, b]", "inner.rate=0.5"])
    assert one == two == Outer(steps=5, inner=Inner(rate=0.5), names=("a", "b"))


def test_saved_settings_load_again(tmp_path: Path) -> None:
    settings = Outer(steps=7, names=("x",))
    save_settings(tmp_path / "saved.yaml", settings)
    assert load_settings(Outer, tmp_path / "saved.yaml") == settings


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("stepz: 5\n", [], 'unknown key "stepz"; did you mean "steps"'),
        ("inner: {rat: 1}\n", [], 'unknown key "inner.rat"; did you mean "rate"'),
        ("steps: 0\n", [], '"steps" is 0'),
        ("steps: many\n", [], "\"steps\" is 'many'"),
        ("names: no list\n", [], "\"names\" is 'no list': expected a list, as [a, b]"),
        ("a: [1\n", [], "line 2: not valid YAML"),
        ("- a\n", [], "expected keys with values"),
        ("", ["stepz=5"], 'command line: unknown key "stepz"; did you mean "steps"'),
        ("", ["inner.rat=1"], 'command line: unknown key "inner.rat"; did you mean "rate"'),
        ("stepz: 5\n", ["steps=1"], 'a.yaml: unknown key "stepz"'),
        ("", ["steps"], "expected key=value"),
        ("", ["steps=1", "steps=2"], "set twice"),
    ],
)
def test_wrong_settings_say_what_is_wrong(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_settings(Outer, path, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml does not exist"):
        load_settings(Outer, tmp_path / "absent.yaml")


def test_nearest_lists_the_choices_when_nothing_is_close() -> None:
    assert nearest("zzz", ["b", "a"]) == "; expected one of a, b"


def test_streams_depend_on_seed_and_keys_alone() -> None:
    draw = generator(1, "pairs", 3).integers(0, 1 << 30, size=8).tolist()
    assert draw == generator(1, "pairs", 3).integers(0, 1 << 30, size=8).tolist()
    assert draw != generator(2, "pairs", 3).integers(0, 1 << 30, size=8).tolist()
    assert draw != generator(1, "pairs", 4).integers(0, 1 << 30, size=8).tolist()
