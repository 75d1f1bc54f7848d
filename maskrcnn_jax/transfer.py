"""Weights of other classes: each class takes the rows of the class that has its name."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from maskrcnn_jax.weights import importer
from maskrcnn_jax.weights.importer import Imported

HEADER = ["", "parameters", "of"]
_NAMED = 30  # so many classes are listed, and of more the number

_CLASS_HEAD = re.compile(r"/(cls_score|bbox_pred)/|/mask_head\w*/(predictor)[_/]")

# For each class of the data the index of the class whose rows it takes; None: random.
Sources = list[int | None]


class Layout(NamedTuple):
    """How the last axis of a class head is laid out, in each of its cells (of an MLP's mask)."""

    per_class: int  # values of a class, side by side
    extra: int  # values behind those of the classes: the background's

    def end(self, num_classes: int) -> int:
        """Values of a cell."""
        return num_classes * self.per_class + self.extra


def take(
    variables: dict[str, Any], imported: Imported, names: Sequence[str]
) -> tuple[dict[str, Any], list[list[str]], list[str]]:
    """Puts imported arrays into a model's random variables; class heads row by row, by name.

    names: of the data's classes. Rows of new classes stay random, the background's is taken.
    Returns the variables, a table under HEADER of what was loaded, mapped, left fresh or left out,
    and lines that warn. Raises UserError where the architectures differ.
    """
    sources, lines = match_classes(imported, names)
    have, wanted = importer.flatten(imported.variables), importer.flatten(variables)
    theirs = imported.classes["names"]
    heads = _class_heads(imported, have, wanted, len(names))
    mapped = {
        path: map_rows(have[path], np.asarray(wanted[path]), sources, layout, len(theirs))
        for path, layout in heads.items()
    }
    matched = replace(imported, variables=importer.unflatten({**have, **mapped}))
    filled, left = importer.fill(variables, matched, skip_heads=True)
    lines += [line for line in left if "of other classes" in line]

    sizes = {path: x.size for path, x in wanted.items() if path.startswith("params/")}
    spare = importer.spare_head(have, wanted)
    loaded = [path for path in sizes if path in have and path not in (*heads, *spare)]
    absent = [path for path in sizes if path not in have]
    rows = [_row("loaded", sum(sizes[path] for path in loaded), _parts(loaded))]
    if heads:
        cells = sum(sizes[p] // layout.end(len(names)) * layout[0] for p, layout in heads.items())
        fresh = cells * sources.count(None)
        whole = sum(sizes[path] for path in heads)
        rows.append(_row("mapped", whole - fresh, _classes(names, sources, theirs)))
        rows.append(_row("fresh", fresh, _classes(names, sources, None)))
    if absent:
        number = sum(sizes[path] for path in absent)
        rows.append(_row("fresh", number, f"{_parts(absent)}: not in the weights"))
    if spare:
        number = sum(have[path].size for path in spare if path.startswith("params/"))
        why = importer.other_keypoints(spare, wanted)
        rows.append(_row("left out", number, f"{_parts(spare)}: {why}"))
        if fresh := sum(sizes[path] for path in spare if path in sizes):
            rows.append(_row("fresh", fresh, f"{_parts(spare)}: {why}"))
    return filled, rows, lines


def match_classes(imported: Imported, names: Sequence[str]) -> tuple[Sources, list[str]]:
    """Where each of `names` is among the imported classes, and lines that warn.

    Case does not count, and spaces, underscores and hyphens are equal; a name that is spelt the
    same comes first. Weights without names are taken in order if they have as many classes.
    """
    theirs = imported.classes["names"]
    if theirs and imported.spec is not None and not imported.spec.class_names:
        if len(theirs) != len(names):
            return [None] * len(names), ["its classes have no names: all class heads start fresh"]
        warning = "WARNING: its classes have no names, but are as many as the data's: in that order"
        return list(range(len(names))), [warning]
    backwards = list(enumerate(theirs))[::-1]  # of equal names the first one counts
    same = {name: i for i, name in backwards}
    alike = {_plain(name): i for i, name in backwards}
    return [same.get(name, alike.get(_plain(name))) for name in names], []


def map_rows(
    theirs: Float[np.ndarray, "... m"],
    ours: Float[np.ndarray, "... n"],
    sources: Sources,
    layout: Layout,
    num_theirs: int,
) -> Float[np.ndarray, "... n"]:
    """A copy of `ours` with the values of `theirs` for each class that has a source.

    What lies behind the classes is taken always.
    """
    per_class, extra = layout
    rows = ours.reshape(-1, layout.end(len(sources))).copy()
    given = theirs.reshape(-1, layout.end(num_theirs))
    for i, source in enumerate(sources):
        if source is not None:
            begin, end = source * per_class, (source + 1) * per_class
            rows[:, i * per_class : (i + 1) * per_class] = given[:, begin:end]
    if extra:
        rows[:, -extra:] = given[:, -extra:]
    return rows.reshape(ours.shape)


def _class_heads(
    imported: Imported, have: dict[str, Any], wanted: dict[str, Any], num_ours: int
) -> dict[str, Layout]:
    """The layout of each array that has values for each class and the shape that it implies."""
    model, num_theirs = imported.config["model"], len(imported.classes["names"])
    layouts = {"cls_score": Layout(1, 1)}
    # A run of an older version has not all of these fields.
    if not model.get("class_agnostic_boxes"):
        layouts["bbox_pred"] = Layout(4, 0)
    if not model.get("class_agnostic_masks"):
        layouts["predictor"] = Layout(1, int(model.get("mask_loss") == "softmax"))
    heads = {}
    for path, ours in wanted.items():
        found = _CLASS_HEAD.search(path)
        layout = layouts.get(found[1] or found[2]) if found else None
        if layout and path in have:
            cells, rest = divmod(ours.shape[-1], layout.end(num_ours))
            if not rest and have[path].shape == (*ours.shape[:-1], cells * layout.end(num_theirs)):
                heads[path] = layout
    return heads


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _row(kind: str, number: int, what: str) -> list[str]:
    return [kind, f"{number:,}", what]


def _parts(paths: list[str]) -> str:
    return ", ".join(sorted({path.split("/")[1] for path in paths}))


def _classes(names: Sequence[str], sources: Sources, theirs: list[str] | None) -> str:
    """The classes that were mapped, with their names there, or those that are fresh (None)."""
    found = []
    for name, source in zip(names, sources, strict=True):
        if theirs is None and source is None:
            found.append(name)
        elif theirs is not None and source is not None:
            found.append(name if name == theirs[source] else f"{name} <- {theirs[source]}")
    listed = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
    return f"{len(found)} of {len(names)} classes" + (f": {listed}" if found else "")
