"""What the doctor found, on the console and as one page with pictures that needs no other file."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as mask_utils
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskrcnn_jax import preprocess, visualize
from maskrcnn_jax.data import doctor_masks, doctor_report
from maskrcnn_jax.data.doctor_read import PictureFinding, RawData
from maskrcnn_jax.data.doctor_run import Report
from maskrcnn_jax.data.formats.draft import Finding
from maskrcnn_jax.data.formats.to_coco import write_bytes
from maskrcnn_jax.errors import UserError

_SIDE = 480  # px, longer side of a thumbnail
_QUALITY = 80
_MOST_LABELS = 30  # objects; more names would hide a thumbnail
_MOST_DRAWN = 1000  # objects
_MOST_ROWS = 200  # findings of one code on the page
_PER_CODE = 3  # pictures
_EXAMPLES = 3  # names of repaired entries

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; margin: .5em 0 1.5em; }
th, td { text-align: left; padding: .15em .8em .15em 0; border-bottom: 1px solid #ddd;
  vertical-align: top; overflow-wrap: anywhere; }
.error { color: #b00020; } .warning { color: #9a6700; } .note { color: #57606a; }
.bars { display: flex; align-items: flex-end; height: 8em; gap: 1px; margin: .5em 0 1.5em; }
.bars i { background: #4078c0; flex: 1 0 3px; min-height: 1px; }
.cards { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 30em; max-width: 100%; } figure img { max-width: 100%; }
summary { cursor: pointer; padding: .2em 0; }
"""


def check_outputs(outputs: Iterable[Path], sources: Sequence[Path]) -> None:
    """Checks before the work that what is to be written can be, and is none of the sources.

    Raises:
      UserError: names the file.
    """
    seen: set[Path] = set()
    for path in outputs:
        place = path.resolve()
        if place in seen or place in {s.resolve() for s in sources}:
            raise UserError(f"{path}: is to be read or written already; name another file")
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UserError(f"{path}: give the name of a file in a folder that exists")
        seen.add(place)


def write_text(path: Path, text: str) -> None:
    """Writes a file at once; names from foreign files that are no text become references."""
    write_bytes(path, text.encode("ascii", errors="xmlcharrefreplace"))


def print_report(report: Report, max_instances: int) -> None:
    """Prints the tables and, of each code, the count and the first findings."""
    console = Console(soft_wrap=True, highlight=False)
    for numbers in report.statistics:
        for title, header, rows in doctor_report.tables(numbers, max_instances):
            table = Table(*header, title=Text(title), title_justify="left")
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
    for line in doctor_report.summary(report.findings):
        console.print(line, markup=False)
    counts = report.counts
    console.print(", ".join(f"{n} {grade}s" for grade, n in counts.items()), markup=False)


def print_repairs(content: Mapping[str, Any], done: Mapping[str, Sequence[str]]) -> None:
    """Prints what a repaired copy holds, and what was done to it."""
    for what, names in sorted(done.items()):
        more = ", ..." if len(names) > _EXAMPLES else ""
        print(f"{what}: {len(names)} ({', '.join(names[:_EXAMPLES])}{more})")
    print(
        f"the repaired copy has {len(content['images'])} pictures and "
        f"{len(content['annotations'])} objects"
    )


def html_page(report: Report, max_instances: int, max_pictures: int) -> str:
    """The page: numbers, findings, and pictures with their masks. All foreign text is escaped."""
    counts = report.counts
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>data set report</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(', '.join(n['file'] for n in report.statistics))}</h1><p>",
        ", ".join(f"<b class='{grade}'>{n} {grade}s</b>" for grade, n in counts.items()),
        "</p><h2>Findings</h2>",
        *_findings(report.findings),
        "<h2>Numbers</h2>",
    ]
    for numbers in report.statistics:
        for title, header, rows in doctor_report.tables(numbers, max_instances):
            parts += [f"<h3>{_text(title)}</h3>", _table(header, rows)]
            if "square root" in title:
                parts.append(_bars(numbers["size_histogram"]))
    parts += ["<h2>Pictures</h2><div class='cards'>", *_cards(report, max_pictures)]
    return "\n".join([*parts, "</div></body></html>\n"])


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    return "<table><tr>" + "</tr>\n<tr>".join([head, *lines]) + "</tr></table>"


def _bars(histogram: Sequence[Mapping[str, float]]) -> str:
    most = max((entry["count"] for entry in histogram), default=1) or 1
    bars = "".join(
        f"<i style='height:{100 * e['count'] / most:.1f}%' "
        f"title='from {e['from_px']} px: {e['count']}'></i>"
        for e in histogram
    )
    return f"<div class='bars'>{bars}</div>"


def _findings(findings: list[Finding]) -> list[str]:
    parts = []
    for (grade, code), like in doctor_report.by_code(findings).items():
        rows = [[f.file, f.where, f.message] for f in like[:_MOST_ROWS]]
        if len(like) > _MOST_ROWS:
            rows.append(["", "", f"... {len(like) - _MOST_ROWS} more: see --json"])
        head = f"<b class='{grade}'>{grade}: {_text(code)}</b> ({len(like)})"
        table = _table(["file", "where", "what"], rows)
        parts.append(f"<details><summary>{head}</summary>{table}</details>")
    return parts


def _cards(report: Report, most: int) -> list[str]:
    """Pictures with findings, some of every code, and as many others as there is room for."""
    cards = []
    for raw, index, findings in _choose(report, most):
        photo = raw.photos[index]
        try:
            encoded = _encode(_draw(raw, index))
        except UserError:
            continue  # told as a finding
        notes = "".join(f"<br><span class='{f.grade}'>{_text(f.message)}</span>" for f in findings)
        cards.append(
            f"<figure><img alt='' src='data:image/jpeg;base64,{encoded}'>"
            f"<figcaption>{_text(photo.name)}{notes}</figcaption></figure>"
        )
    return cards


def _choose(report: Report, most: int) -> list[tuple[RawData, int, list[Finding]]]:
    chosen: dict[tuple[int, int], list[Finding]] = {}
    others = []
    for k, examined in enumerate(report.examined):
        raw = examined.raw
        rows = {p.name: i for i, p in reversed([*enumerate(raw.photos)]) if p.file is not None}
        for like in doctor_report.by_code(raw.findings).values():
            shown = [f for f in like if isinstance(f, PictureFinding) and f.picture in rows]
            for finding in shown[:_PER_CODE]:
                chosen.setdefault((k, rows[finding.picture]), []).append(finding)
        others += [(k, index) for index in rows.values()]
    for place in others[:: max(1, len(others) // max(1, most))]:
        chosen.setdefault(place, [])
    return [(report.examined[k].raw, i, fs) for (k, i), fs in list(chosen.items())[:most]]


def _encode(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _draw(raw: RawData, index: int) -> UInt8[np.ndarray, "h w 3"]:
    """A thumbnail of a picture with its masks."""
    photo = raw.photos[index]
    try:
        image, fits = preprocess.load_image(photo.file, photo.hw), photo.hw is not None
    except UserError:  # of another size than told: the picture alone
        image, fits = preprocess.load_image(photo.file), False
    hw = image.shape[:2]
    scale = min(1.0, _SIDE / max(hw))
    size = max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale))
    image = preprocess.resize_image(image, size)
    if not fits:
        return image
    things = [t for t in raw.things if t.photo == index][:_MOST_DRAWN]
    rles = [doctor_masks.to_rle(t, photo.hw) for t in things]
    drawn = [(t, rle) for t, rle in zip(things, rles, strict=True) if rle is not None]
    masks = [_shrink(mask_utils.decode(rle), size) for _, rle in drawn]
    boxes = np.array([_box(rle) for _, rle in drawn], np.float64).reshape(-1, 4) * scale
    classes = np.array([max(t.category, 0) for t, _ in drawn], np.int64)
    names = [_plain(c.name) for c in raw.categories] or [""]
    return visualize.draw(
        image, boxes, classes, None, masks, names, labels=len(drawn) <= _MOST_LABELS
    )


def _plain(name: str) -> str:
    """A name as Pillow can draw it."""
    return name.encode("utf-8", errors="replace").decode("utf-8")[:40]


def _shrink(mask: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)) > 0


def _box(rle: dict) -> list[float]:
    x, y, w, h = mask_utils.toBbox(rle).tolist()
    return [x, y, x + w, y + h]
