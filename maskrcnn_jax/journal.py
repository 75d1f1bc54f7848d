"""The journal of a folder of results: one line per picture that is complete.

It lets the same command go on where it was stopped. The first line holds the settings; a line that
a kill cut in the middle is dropped; of several lines on one picture the last one counts. Rows stay
in the file until they are asked for, so a million pictures take little memory.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskrcnn_jax.errors import UserError

NAME = "predictions.jsonl"


class Journal:
    """The journal of one folder, open for more lines."""

    def __init__(self, folder: Path, settings: dict[str, Any], overwrite: bool):
        """Opens the folder's journal or begins one.

        settings: what results depend on; JSON. overwrite: begin anew, whatever the folder holds.
        Raises UserError if the folder holds other files, or results made with other settings.
        """
        self._path = folder / NAME
        self._places: dict[str, tuple[int, dict]] = {}  # path of the picture -> offset, head
        self._settings = json.loads(json.dumps(settings))
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; give a folder for the results")
        if overwrite or not self._path.exists():
            if not overwrite and folder.is_dir() and any(folder.iterdir()):
                raise UserError(
                    f"{folder}: the folder is not empty, and nothing in it is overwritten; give "
                    "another --output, or --overwrite"
                )
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w+b")
            self._append(self._settings)
        else:
            self._file = self._path.open("r+b")
            self._read()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def head(self, path: str) -> dict[str, Any] | None:
        """What was written of the picture at `path`, without the rows; None if nothing was."""
        place = self._places.get(path)
        return None if place is None else place[1]

    def heads(self) -> list[dict[str, Any]]:
        """What was written of all pictures, without the rows, in the order of their lines."""
        return [head for _, head in sorted(self._places.values(), key=lambda place: place[0])]

    def add(self, head: dict[str, Any], rows: list[dict]) -> None:
        """Appends a picture. head: has its "path", the key."""
        offset = self._append({**head, "rows": rows})
        self._places[head["path"]] = offset, head

    def rows(self) -> Iterator[tuple[dict[str, Any], list[dict]]]:
        """Yields (head, rows) of all pictures, read from the file one by one."""
        for offset, head in sorted(self._places.values(), key=lambda place: place[0]):
            self._file.seek(offset)
            yield head, json.loads(self._file.readline())["rows"]

    def _append(self, line: dict) -> int:
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        return offset

    def _read(self) -> None:
        offset = 0
        for number, line in enumerate(self._file):
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
                if number == 0:
                    self._compare(content)
                elif content is not None:
                    del content["rows"]
                    self._places[content["path"]] = offset, content
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"{self._path}, line {number + 1}: damaged ({error}); give another --output, "
                    "or --overwrite"
                ) from error
            if content is None:
                break
            offset += len(line)
        self._file.truncate(offset)

    def _compare(self, before: Any) -> None:
        before = before if isinstance(before, dict) else {}
        for name, value in self._settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{self._path.parent}: holds results with {name} = {before.get(name)!r}, now "
                    f"it is {value!r}; give another --output, or --overwrite"
                )
