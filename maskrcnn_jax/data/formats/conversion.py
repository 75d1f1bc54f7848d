"""From annotation files of any format to COCO JSON files: what `maskrcnn convert` does."""

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_jax.data.formats import grouping, labelme, reading, registry, splitting, to_coco
from maskrcnn_jax.data.formats.draft import Draft, Options
from maskrcnn_jax.errors import UserError

PARTS = ("train", "val", "test")
_MOST_NAMES = 4  # in a finding


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written."""

    draft: Draft  # what was read; its findings are complete
    files: dict[Path, dict[str, Any]]  # each file that was written, and its content
    images: Path  # the folder that the file names in it are relative to


def convert(
    sources: Sequence[Path],
    output: Path,
    *,
    kind: str = "",
    options: Options = Options(),  # noqa: B008
    class_map: to_coco.ClassMap | None = None,
    classes: Sequence[str] = (),
    category_ids: Mapping[str, int] | None = None,
    fractions: Sequence[float] = (),
    group: str = "",
    twins: bool = True,
    seed: int = 0,
    keep_category_ids: bool = False,
    extract_images: bool = False,
    begin: Callable[[int], None] = lambda total: None,
    advance: Callable[[], None] = lambda: None,
) -> Converted:
    """Reads the sources, puts them together, and writes them as COCO JSON.

    Args:
      sources: files or folders; each kind is found out if `kind` is "".
      output: the JSON to write; with fractions, its name gets _train, _val and _test.
      class_map, classes, category_ids, keep_category_ids: see `to_coco.finish`.
      fractions: of two or three parts; none for one file.
      group: see `grouping.group_keys`.
      twins: open the pictures and keep near-duplicates in one part, see `grouping.join_twins`;
        files with the same content are kept together in any case.
      seed: see `splitting.split`.
      extract_images: write the pictures of labelme sources, also those that are inside the JSON
        only, to a folder `images` beside the output, and use these.
      begin, advance: told how many pictures are opened for the split, and when one is done.

    Raises:
      UserError: a source cannot be used, nothing is left, or the output would replace something
        that this function did not write.
    """
    paths = part_paths(output, len(fractions)) if fractions else [output]
    for path in paths:
        _check_output(path, sources)
    drafts = []
    for source in sources:
        used = options
        if extract_images:
            folder = output.parent / "images"
            folder = folder / source.stem if len(sources) > 1 else folder
            used = dataclasses.replace(options, images=_extract(source, kind, folder))
        drafts.append(registry.read(source, kind, used))
    draft = to_coco.merge(drafts)
    coco = to_coco.finish(draft, class_map, classes, keep_category_ids, category_ids)
    contents = [coco]
    if fractions:
        keys = grouping.group_keys(coco, group, draft.images)
        if twins:
            begin(len(keys))
            keys = grouping.join_twins(coco, keys, draft.images, advance)
        _tell_groups(draft, coco, keys)
        contents = splitting.split(coco, fractions, seed, keys)
    files = dict(zip(paths, contents, strict=True))
    for path, content in files.items():
        to_coco.write(path, content)
    return Converted(draft, files, draft.images)


def part_paths(output: Path, count: int) -> list[Path]:
    """The files of the parts: coco_train.json, coco_val.json, coco_test.json."""
    return [output.with_name(f"{output.stem}_{part}{output.suffix}") for part in PARTS[:count]]


def parse_fractions(text: str) -> list[float]:
    """The shares in "0.8/0.2" or "70/20/10".

    Raises:
      UserError: they are not two or three positive numbers.
    """
    shares = [reading.parse_number(part.strip()) for part in text.split("/")]
    if not 2 <= len(shares) <= len(PARTS) or any(s is None or s <= 0 for s in shares):
        raise UserError(
            f"--split {text!r}: give the shares of train/val or train/val/test: 0.8/0.2"
        )
    total = math.fsum(s for s in shares if s is not None)
    return [s / total for s in shares if s is not None]


def parse_classes(text: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names: "a,b,c", a text file with one per line, or the categories of a COCO JSON.

    Returns:
      The names, and their ids where a COCO JSON gives them.

    Raises:
      UserError: the file holds none, or a name is repeated.
    """
    path, ids = Path(text), []
    if not reading.is_file(path):
        if path.suffix.lower() in (".txt", ".json", ".names"):
            raise UserError(f"--classes {text}: there is no such file; correct the name")
        names = [name.strip() for name in text.split(",")]
    elif path.suffix.lower() == ".json":
        content = reading.read_json(path)
        entries = content.get("categories") if isinstance(content, dict) else None
        entries = [e for e in entries or () if isinstance(e, dict)]
        entries.sort(key=lambda e: reading.number(e.get("id")) or 0)
        names = [reading.text(entry.get("name")) for entry in entries]
        ids = [reading.whole(entry.get("id")) for entry in entries]
    else:
        names = [line.strip() for line in reading.read_text(path).splitlines()]
    sound = all(names) and None not in ids and len(set(ids)) == len(ids) == len(names)
    found = dict(zip(names, ids, strict=True)) if sound else {}
    names = [name for name in names if name]
    if not names or len(set(names)) < len(names):
        raise UserError(f"--classes {text}: give one or more names, each once")
    return tuple(names), found


def parse_class_map(text: str) -> dict[str, str | None]:
    """A class map: "old=new,other=" (nothing: dropped), or a JSON {"old": "new", "other": null}.

    Raises:
      UserError: it is neither.
    """
    if reading.is_file(Path(text)):
        content = reading.read_json(Path(text))
        if isinstance(content, dict) and all(isinstance(n, str | None) for n in content.values()):
            return {old: (new or "").strip() or None for old, new in content.items()}
        raise UserError(f'--class-map {text}: write {{"old": "new", "dropped": null}} in it')
    found: dict[str, str | None] = {}
    for pair in text.split(","):
        old, equals, new = pair.partition("=")
        if not equals or not old.strip():
            raise UserError(
                f"--class-map {text!r}: {pair!r} is no old=new; name a JSON file that exists, or "
                "write old=new,other=new and old= to drop a class"
            )
        found[old.strip()] = new.strip() or None
    return found


def _tell_groups(draft: Draft, coco: dict[str, Any], keys: Sequence[str]) -> None:
    """Finds a note for every group of two or more pictures."""
    groups = collections.defaultdict(list)
    for key, entry in zip(keys, coco["images"], strict=True):
        groups[key].append(entry["file_name"])
    for first, *others in groups.values():
        if others:
            names = ", ".join(others[:_MOST_NAMES])
            more = len(others) - _MOST_NAMES
            names += f" and {more} more" if more > 0 else ""
            draft.find("note", "kept-together", first, f"stays in one part with {names}")


def _check_output(path: Path, sources: Sequence[Path]) -> None:
    """Refuses to replace what was not written by `convert`."""
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; name a file in it, coco.json")
    if path.suffix.lower() != ".json":
        raise UserError(f"--output {path}: must end in .json")
    if not path.exists():
        return
    with open(path, "rb") as stream:
        ours = json.dumps(to_coco.DESCRIPTION).encode() in stream.read(200)
    if not ours or any(source.exists() and path.samefile(source) for source in sources):
        raise UserError(f"--output {path}: would replace a file of yours; choose another name")


def _extract(source: Path, kind: str, folder: Path) -> Path:
    """Writes the pictures of a labelme source below the folder."""
    module = registry.find(kind) if kind else registry.detect(source)
    if module is not labelme:
        raise UserError(f"{source}: is of kind {module.NAME}; --extract-images is for labelme")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in labelme.all_pictures(source):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            to_coco.write_bytes(path, content)
        elif path.read_bytes() != content:
            raise UserError(f"{path}: is there with another content; choose another --output")
    return folder
