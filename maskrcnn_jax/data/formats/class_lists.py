"""Class names by number: classes.txt, data.yaml and the like."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml  # brought by Flax and Orbax

from maskrcnn_jax.data.formats import reading
from maskrcnn_jax.data.formats.draft import Draft
from maskrcnn_jax.errors import UserError

YAML_SUFFIXES = (".yaml", ".yml")
_TEXT_NAMES = ("classes.txt", "obj.names", "_darknet.labels")
_MOST_BYTES = 1_000_000  # of a file of names
_MOST_CLASSES = 100_000


def read_yaml_names(path: Path) -> list[str] | None:
    """The `names` of a YAML file, a list or a mapping from numbers; None if it has none.

    Every scalar is read as a text, so that the class `no` is not False.

    Raises:
      UserError: it is no YAML, or the names are neither.
    """
    try:
        content = yaml.load(_short_text(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise UserError(f"{path}: not valid YAML ({reason:.200}); correct it") from error
    names = content.get("names") if isinstance(content, dict) else None
    if names is None:
        return None
    if isinstance(names, dict):
        numbers = [reading.parse_number(key) for key in names]
        if None in numbers or sorted(numbers) != list(range(len(names))):
            raise UserError(f"{path}: the keys of 'names' are not 0, 1, 2, ...; correct them")
        names = [names[key] for _, key in sorted(zip(numbers, names, strict=True))]
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise UserError(f"{path}: 'names' is not a list of class names; correct it")
    return [name.strip() for name in names]


def find_names(folders: Sequence[Path]) -> tuple[list[str], Path] | None:
    """The names of the first list that lies in one of these folders, and its file.

    Raises:
      UserError: a list is damaged.
    """
    for folder in folders:
        for name in _TEXT_NAMES:
            if (folder / name).is_file():
                lines = _short_text(folder / name).splitlines()
                while lines and not lines[-1].strip():
                    lines.pop()
                return [line.strip() for line in lines], folder / name
        for file in _yaml_files(folder):
            names = read_yaml_names(file)
            if names is not None:
                return names, file
    return None


def _yaml_files(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return []
    found = [f for f in folder.iterdir() if f.suffix.lower() in YAML_SUFFIXES and f.is_file()]
    return sorted(found, key=lambda f: (f.stem != "data", f.stem != "dataset", f.name))


def _short_text(path: Path) -> str:
    if reading.is_file(path) and path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: is too large for a list of class names; name the right file")
    return reading.read_text(path)


def distinct(draft: Draft, names: Sequence[Any], file: str) -> list[str]:
    """The names by number; one without a text gets its number, one that occurs twice is told."""
    if len(names) > _MOST_CLASSES:
        raise UserError(f"{file}: has {len(names)} class names; name the right file")
    found = []
    for number, name in enumerate(names):
        if not name:
            message = f"class {number} has no name and is called {str(number)!r}"
            draft.find("warning", "no-name", str(number), message, file)
        elif name in found:
            message = f"{name!r} is there twice; both numbers are read as one class"
            draft.find("warning", "duplicate-class", str(number), message, file)
        found.append(name or str(number))
    return found
