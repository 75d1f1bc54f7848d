"""Loads, checks, saves and compares configs. No JAX here: a mistake is told before anything heavy.

`configs/common.py` returns the whole tree of fields with their defaults; it is the schema. The
package never imports `configs/`: whoever calls `load` passes that tree. A field's default tells
its type, so that every source of values (a config file, a saved JSON, the command line) goes
through one converter, and a misspelt or ill-typed field cannot slip through any of them.
"""

import ast
import difflib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from maskrcnn_jax import config_rules
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.files import replacing

ConfigDict = ml_collections.ConfigDict

# Texts of JSON; a config file, being Python, may give the list itself.
JSON_TEXTS = ("data.albumentations",)


def load(
    path: str | os.PathLike, overrides: Iterable[str] = (), *, schema: ConfigDict
) -> ConfigDict:
    """Reads a config, applies overrides, and returns the locked tree.

    Args:
      path: a Python file with `get_config()`, or the `config.json` that a run left in its workdir.
        Fields that it does not mention keep the schema's value.
      overrides: texts like `optim.base_lr=0.01`, parsed by the type of the field; tuples as
        `(480,512)` or `640,800`. Later ones win.
      schema: the complete tree of fields and defaults, `configs.common.get_config()`.

    Raises:
      UserError: unreadable file, unknown field (the nearest one is named), value of another type.
    """
    path = Path(path)
    values = flatten(_read_json(path) if path.suffix == ".json" else _run_file(path))
    defaults = flatten(schema)
    config = schema.copy_and_resolve_references()
    for field, value in values.items():
        _set(config, field, _convert(value, _default(field, defaults, path), field, path))
    for text in overrides:
        field, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"override {text!r}: write it as field=value, as in optim.base_lr=0.01")
        default = _default(field, defaults, "command line")
        value = _convert(_parse(value, default), default, field, "command line")
        _set(config, field, value)
    config.lock()
    return config


def validate(config: ConfigDict, mode: str = "train") -> list[str]:
    """Checks the values, and the fields against each other; to be called before any data.

    Args:
      config: a complete tree, as `load` returns it.
      mode: "train", "evaluate" or "replay"; it tells which data set must be named.

    Returns:
      Warnings: allowed, but rarely meant. They deserve a loud line in the log.

    Raises:
      UserError: all that is wrong, one line each, with field, value and remedy.
    """
    errors, warnings = config_rules.check(flatten(config), mode)
    if errors:
        raise UserError("\n".join(f"config: {error}" for error in errors))
    return warnings


def flatten(config: Mapping | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns {"group.field": value} of a tree of groups, in the tree's order."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def save(config: ConfigDict, path: str | os.PathLike) -> None:
    """Writes the resolved config as JSON, which `load` reads back. Atomic: whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def diff(a: ConfigDict, b: ConfigDict) -> list[tuple[str, Any, Any]]:
    """Returns (field, value in a, value in b) where they differ; None where a field is absent."""
    old, new = flatten(a), flatten(b)
    fields = old | new
    return [(f, old.get(f), new.get(f)) for f in fields if old.get(f) != new.get(f)]


def _run_file(path: Path) -> ConfigDict:
    """Runs a config file and returns what its `get_config()` returns.

    Config files import each other as `from configs import common`. That works from any working
    directory, because the folder that holds the file's `configs/` joins the module search path
    while the file runs; at its end, so that the `configs/` beside main.py comes first.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such config file; give one of configs/*.py")
    root = next((str(p) for p in path.resolve().parents if (p / "configs").is_dir()), None)
    search_path = list(sys.path)
    if root is not None:
        sys.path.append(root)
    try:
        spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise UserError(f"{path}: a config is a .py file with get_config(), or a config.json")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[spec.name] = module  # one of the sources that `traces` looks at
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:  # the file is the user's program: whatever it raises is told so
        line = _line_of(error, path)
        raise UserError(f"{path}{line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = search_path
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config


def _line_of(error: Exception, path: Path) -> str:
    """Returns ", line n" of the last line of the config file in the traceback of its error."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [
        f.lineno for f in frames if Path(f.filename) == path.absolute() or f.filename == str(path)
    ]
    return f", line {lines[-1]}" if lines else ""


def _read_json(path: Path) -> dict:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected an object of groups, as a run saves it")
    return tree


def _default(field: str, defaults: dict[str, Any], source: str | Path) -> Any:
    """Returns the schema's value of a field; unknown fields raise and name the nearest."""
    if field in defaults:
        return defaults[field]
    members = [name for name in defaults if name.startswith(f"{field}.")]
    if members:
        raise UserError(
            f"{source}: '{field}' is a group; set one of its fields: {', '.join(members)}"
        )
    leaf = field.rpartition(".")[2]

    def likeness(name: str) -> float:
        pairs = ((field, name), (leaf, name.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    nearest = max(defaults, key=likeness)
    raise UserError(
        f"{source}: there is no field '{field}'; the nearest is '{nearest}', "
        f"{_expected(defaults[nearest])}"
    )


def _expected(default: Any) -> str:
    """Describes the type that a field wants, by its default."""
    if default == ():
        return "a tuple of numbers or of pairs of numbers"
    kind = {bool: "true or false", int: "an int", float: "a float", str: "a text", tuple: "a tuple"}
    example = "" if default == "" or isinstance(default, bool) else f" such as {default!r}"
    return kind[type(default)] + example


def _parse(text: str, default: Any) -> Any:
    """Reads a text as the type of the default; what cannot be read comes back as the text."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.strip().lower()]
        if isinstance(default, tuple):
            value = ast.literal_eval(text) if text.strip() else ()
            return value if isinstance(value, tuple | list) else (value,)
        return type(default)(text)
    except (ValueError, KeyError, SyntaxError):
        return text


def _convert(value: Any, default: Any, field: str, source: str | Path) -> Any:
    """Returns the value in the type of the default: ints serve as floats, lists as tuples."""
    try:
        if field in JSON_TEXTS and isinstance(value, tuple | list):
            value = json.dumps(value)
        return _as_type(value, default)
    except TypeError:
        raise UserError(
            f"{source}: {field}={value!r} is {type(value).__name__}; expected {_expected(default)}"
        ) from None


def _as_type(value: Any, default: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(default, tuple) and isinstance(value, tuple | list):
        if not default:
            return tuple(_numbers(item) for item in value)
        if not isinstance(default[0], tuple):
            return tuple(_as_type(item, default[0]) for item in value)
        return tuple(_row(item, default[0]) for item in value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise TypeError
    return value


def _row(value: Any, default: tuple) -> tuple:
    """A (pattern, factor) row: one type per column."""
    if not isinstance(value, tuple | list) or len(value) != len(default):
        raise TypeError
    return tuple(_as_type(item, column) for item, column in zip(value, default, strict=True))


def _numbers(value: Any) -> Any:
    """An item of a tuple that is empty by default: a number, or a tuple of numbers."""
    if isinstance(value, tuple | list):
        return tuple(_numbers(item) for item in value)
    if type(value) not in (int, float):
        raise TypeError
    return value


def _set(config: ConfigDict, field: str, value: Any) -> None:
    *groups, name = field.split(".")
    for group in groups:
        config = config[group]
    config[name] = value
