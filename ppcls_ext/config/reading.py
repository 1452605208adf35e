"""YAML text, `base:` and `-o` overrides -> one plain mapping."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ppcls_ext.errors import Refused, did_you_mean


class _Yaml(yaml.SafeLoader):
    """YAML whose scalars mean what a reader expects: 1e-3 is a number, `no` a word, a repeated key a mistake."""


# YAML 1.1 reads 1e-3 as a string, `on` and `no` as booleans, 010 as 8 and 1:30 as 90.
_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?\d+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$", "-+.0123456789"),
    ("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+."),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _construct_int(loader: _Yaml, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_mapping(loader: _Yaml, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int)):
            raise yaml.constructor.ConstructorError(
                None, None, f"a key must be a word, got {key!r}", key_node.start_mark
            )
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Yaml.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Yaml.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def read_yaml(text: str, place: str) -> Any:
    """Parse YAML text; a mistake is refused with its line."""
    try:
        return yaml.load(text, Loader=_Yaml)
    except ValueError as error:  # a tag that its text does not fit: !!int abc
        raise Refused(f"{place}: not valid YAML: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise Refused(f"{place}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.glob("*.yaml")]
        near = f". {did_you_mean(path.name, beside)}" if beside else ""
        raise Refused(f"No such configuration: {path}{near}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"Cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}") from error
    content = read_yaml(text, str(path))
    if not isinstance(content, dict):
        raise Refused(f"{path}: expected sections such as Global and Arch, got {type(content).__name__}")
    return content


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`: mappings are merged, everything else (lists too) is replaced.

    A component that changes its name keeps nothing of the base's arguments.
    """
    if "name" in own and "name" in base and own["name"] != base["name"]:
        return own
    result = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if both else value
    return result


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply one `a.b.1.c=value` to the raw mapping, in place; without a value the key, or list item, is taken out."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise Refused(f"-o {text}: expected path.to.key=value, for example -o Global.epochs=10")
    here: Any = raw
    for depth, key in enumerate(keys):
        place = ".".join(keys[: depth + 1])
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise Refused(f"-o {text}: {place}: expected an index from 0 to {len(here) - 1}, got '{key}'")
            slot: Any = int(key)
        elif isinstance(here, dict):
            slot = key
            if last and not value.strip() and key not in here:
                raise Refused(f"-o {text}: there is no {place} to take out, and no value after '='")
            here.setdefault(key, None)
        else:
            parent = ".".join(keys[:depth])
            raise Refused(f"-o {text}: {parent} is {here!r}, not a section; set the whole with -o {parent}=...")
        if last and value.strip():
            here[slot] = _value(path, value)
        elif last:
            del here[slot]
        else:
            if here[slot] is None:
                here[slot] = {}
            here = here[slot]


def _value(path: str, text: str) -> Any:
    try:
        return read_yaml(text, f"-o {path}")
    except Refused as error:
        raise Refused(
            f"{error}; values are YAML: quote braces and brackets from the shell, -o 'EMA={{decay: 0.9}}', and a text "
            f"that begins with one, or holds ': ' or ' #', in YAML too, -o '{path}=\"...\"'"
        ) from error


def _with_home(value: Any) -> Any:
    """The same, texts that begin with `~/` with the user's folder: the shell puts it in at some places only."""
    if isinstance(value, dict):
        return {key: _with_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def read_raw(path: Path, overrides: Iterable[str]) -> dict[str, Any]:
    """The file, over the one file that its `base:` names, with the overrides applied."""
    raw = read_file(path)
    if "base" in raw:
        named = raw.pop("base")
        if not isinstance(named, str):
            raise Refused(f"{path}: base: expected the name of a configuration file, got {named!r}")
        base_path = path.parent / named
        base = read_file(base_path)
        if "base" in base:
            raise Refused(f"{base_path}: is the base of {path.name} and has a base itself; one level is allowed")
        raw = _merged(base, raw)
    for override in overrides:
        _override(raw, override)
    return {str(key): _with_home(value) for key, value in raw.items()}
