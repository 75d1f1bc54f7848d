"""The doctor's round: reads data sets of any format, checks them one by one and together."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_jax.data import doctor, doctor_pictures, doctor_read, doctor_report, doctor_twins
from maskrcnn_jax.data.doctor import Examined
from maskrcnn_jax.data.doctor_pictures import Look
from maskrcnn_jax.data.formats import registry, to_coco
from maskrcnn_jax.data.formats.draft import Draft, Finding, Options
from maskrcnn_jax.data.formats.reading import try_json
from maskrcnn_jax.errors import UserError

# Of the files in folders that no annotations name.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
# Where in a folder tools put their COCO JSON.
_PLACES = ("_annotations.coco.json", "labels.json", "result.json", "annotations/*.json")


@dataclasses.dataclass(frozen=True)
class Report:
    """Data sets and what was found in them."""

    examined: list[Examined]
    statistics: list[dict[str, Any]]
    looks: dict[Path, Look]  # empty if the pictures were not opened

    @property
    def findings(self) -> list[Finding]:
        """All findings, data set by data set."""
        return [f for e in self.examined for f in e.raw.findings]

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings by grade."""
        return {g: sum(f.grade == g for f in self.findings) for g in doctor_report.GRADES}

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        findings = [dataclasses.asdict(f) for f in self.findings]
        return {"counts": self.counts, "statistics": self.statistics, "findings": findings}


def inspect(
    sources: Sequence[Path],
    *,
    kind: str = "",
    images: Sequence[Path] = (),
    also: Sequence[Path] = (),
    open_pictures: bool = True,
    max_instances: int = 100,
    begin: Callable[[int], None] = lambda total: None,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Checks data sets, the splits of one task.

    Args:
      sources: COCO JSON, or any format of `data.formats`.
      kind: name of that format; found out where it is "".
      images: folder of the pictures: none (looked for near the source), one for all, or one each.
      also: folders of pictures without annotations that must share none with the sources.
      open_pictures: False looks at the files alone.
      max_instances: objects of one picture that training keeps.
      begin, advance: told how many pictures there are, and when one is done.

    Raises:
      UserError: a source cannot be read at all, or a folder does not exist.
    """
    if len(images) not in (0, 1, len(sources)):
        raise UserError(f"--images is given {len(images)} times: once, or once per data set")
    for folder in [*images, *also]:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; correct --images or --also")
    folders = [*images] * (len(sources) if len(images) == 1 else 1) or [None] * len(sources)
    examined = [
        _examine(source, kind, folder, max_instances)
        for source, folder in zip(sources, folders, strict=True)
    ]
    splits = [e.raw for e in examined]
    looks: dict[Path, Look] = {}
    if open_pictures:
        for raw in splits:
            doctor_pictures.locate(raw)
        paths = {p.file: None for raw in splits for p in raw.photos if p.file is not None}
        paths |= {p: None for folder in also for p in _pictures_in(folder)}
        begin(len(paths))
        looks = {look.path: look for look in doctor_pictures.look_at_all([*paths], advance)}
        for raw in splits:
            doctor_pictures.check(raw, looks)
        doctor_twins.check(splits, looks)
    if len(splits) > 1:
        doctor.compare(splits)
    numbers = [doctor_report.statistics(e, max_instances) for e in examined]
    return Report(examined, numbers, looks)


def _examine(source: Path, kind: str, images: Path | None, max_instances: int) -> Examined:
    path = _coco_file(source, kind) if kind in ("", "coco") else None
    if path is not None:
        content, findings = doctor_read.read_content(path)
        examined = doctor.examine(path, content, findings, max_instances)
        names = [p.name for p in examined.raw.photos if p.name]
        folders = [images] if images else doctor_pictures.guess_folders(path, names)
        examined.raw.folders.extend(folders)
        return examined
    draft = registry.read(source, kind, Options(images=images))
    examined = doctor.examine(source, _to_coco(draft), draft.findings, max_instances)
    examined.raw.folders.append(draft.images)
    examined.raw.foreign = True
    return examined


def _coco_file(source: Path, kind: str) -> Path | None:
    """The COCO JSON that a source names: itself, or the only one in the folder."""
    if source.is_dir():
        found = [p for place in _PLACES for p in sorted(source.glob(place))]
        found = [p for p in found if _is_coco(try_json(p))]
        return found[0] if len(found) == 1 else None
    if kind == "coco":
        return source
    if source.suffix.lower() != ".json" or not source.exists():
        return None
    content = try_json(source)
    # What is no JSON, or a list of results, is told of by the reader of COCO JSON.
    return source if content is None or _is_coco(content) or _is_results(content) else None


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and (
        sum(isinstance(content.get(key), list) for key in doctor_read.LISTS) >= 2
    )


def _is_results(content: Any) -> bool:
    entry = content[0] if isinstance(content, list) and content else None
    return isinstance(entry, dict) and {"image_id", "category_id"} <= entry.keys()


def _to_coco(draft: Draft) -> dict[str, Any]:
    try:
        return to_coco.finish(draft)
    except UserError as error:
        draft.find("error", "no-objects", "", str(error))
        images = [
            {"id": i, "file_name": p.name, "height": p.height, "width": p.width}
            for i, p in enumerate(draft.pictures, 1)
        ]
        categories = [{"id": i, "name": name} for i, name in enumerate(draft.classes, 1)]
        return {"images": images, "annotations": [], "categories": categories}


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
