"""Settings of every job: typed, checked at the start, read from YAML with `key=value` overrides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from corpora.common.errors import UserError, nearest
from corpora.common.files import write_text_atomic


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused and values do not change after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Faults(ValueError):
    """Several faults that one validator found; as text it is the first of them."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(faults[0])
        self.faults = tuple(faults)


S = TypeVar("S", bound=Settings)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: the file is missing, is not YAML (naming the line) or holds something else than a mapping.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys with values, found a {type(value).__name__}")
    return value


def _set(values: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f'{source}: "{dotted}" goes below "{parent}", which holds no keys')
        values = inner
    values[last] = value


def _reasons(
    error: ValidationError, cls: type[BaseModel], source: str, overridden: Collection[str] = ()
) -> list[str]:
    """A line for each fault."""
    lines = []
    for one in error.errors():
        found = one.get("ctx", {}).get("error")
        messages = found.faults if isinstance(found, Faults) else (one["msg"],)
        lines += [_reason({**one, "msg": message}, cls, source, overridden) for message in messages]
    return lines


def _reason(first: Any, cls: type[BaseModel], source: str, overridden: Collection[str]) -> str:
    place = ".".join(str(part) for part in first["loc"])
    if any(place == key or place.startswith(f"{key}.") for key in overridden):
        source = "command line"
    if first["type"] == "extra_forbidden":
        model: Any = cls
        for part in first["loc"][:-1]:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field is not None else None
        known = getattr(model, "model_fields", {})
        return f'{source}: unknown key "{place}"{nearest(str(first["loc"][-1]), known)}'
    if first["type"] == "missing":
        return f'{source}: key "{place}" is missing'
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("tuple_type", "list_type"):
        message = "expected a list, as [a, b]"
    message = message[:1].lower() + message[1:]
    if not place:
        return f"{source}: {message}"
    given = first.get("input")
    return f'{source}: "{place}" is {given!r}: {message}'


def make_settings(cls: type[S], values: dict[str, Any], source: str, overridden: Collection[str] = ()) -> S:
    """Check `values` against `cls`.

    Args:
        cls: the settings class.
        values: keys and values.
        source: where they come from, for the message.
        overridden: those of them, as `a.b`, that the command line set.

    Raises:
        UserError: an unknown key (with the nearest valid name), a missing one or an impossible value; its `others`
            are the faults behind the first.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first, *others = _reasons(error, cls, source, overridden)
        raise UserError(first, others) from error


def load_settings(cls: type[S], path: str | Path | None, overrides: list[str] | None = None) -> S:
    """Read settings from a YAML file and set what the command line says last.

    Args:
        cls: the settings class.
        path: the YAML file, or None for the defaults.
        overrides: `key=value` with YAML values; `a.b=1` reaches a nested key. Their order does not matter.

    Raises:
        UserError: see `read_yaml` and `make_settings`; or an override without `=` or given twice.
    """
    values = read_yaml(path) if path is not None else {}
    seen: set[str] = set()
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f'"{override}" is not a setting; expected key=value')
        if key in seen:
            raise UserError(f'"{key}" is set twice on the command line')
        seen.add(key)
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise UserError(f'the value of "{key}" is not valid YAML: {text}') from error
        _set(values, key, value, "command line")
    return make_settings(cls, values, str(path) if path is not None else "command line", seen)


def save_settings(path: str | Path, settings: Settings) -> None:
    """Write the resolved settings as YAML, keys in the order of the class."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text_atomic(path, text)
