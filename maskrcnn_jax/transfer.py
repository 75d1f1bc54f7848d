"""Weights of other classes: each class takes the rows of the class that has its name."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from maskrcnn_jax.weights import importer
from maskrcnn_jax.weights.importer import Imported

HEADER = ["", "parameters", "of"]
_NAMED = 30  # so many classes are listed, and of more the number

# Class heads: values per class and values behind them (the background), on the last axis.
_LAYOUTS = {"cls_score": (1, 1), "bbox_pred": (4, 0), "predictor": (1, 0)}
_CLASS_HEAD = re.compile(r"/(cls_score|bbox_pred)/|mask_head/(predictor)_")

# For each class of the data the index of the class whose rows it takes; None: random.
Sources = list[int | None]


def take(
    variables: dict[str, Any], imported: Imported, names: Sequence[str]
) -> tuple[dict[str, Any], list[list[str]], list[str]]:
    """Puts imported arrays into a model's random variables; class heads row by row, by name.

    names: of the data's classes. Rows of new classes stay random, the background's is taken.
    Returns the variables, a table under HEADER of what was loaded, mapped and left fresh, and lines
    that warn. Raises UserError where the architectures differ.
    """
    sources, lines = match_classes(imported, names)
    have, wanted = importer.flatten(imported.variables), importer.flatten(variables)
    num_theirs = len(imported.classes["names"])
    heads = _class_heads(have, wanted, num_theirs, len(names))
    mapped = {
        path: map_rows(have[path], np.asarray(wanted[path]), sources, layout, num_theirs)
        for path, layout in heads.items()
    }
    matched = replace(imported, variables=importer.unflatten({**have, **mapped}))
    filled, left = importer.fill(variables, matched, skip_heads=True)
    lines += [line for line in left if "of other classes" in line]

    sizes = {p: x.size for p, x in wanted.items() if p.startswith("params/")}
    loaded = [p for p in sizes if p in have and p not in heads]
    absent = [p for p in sizes if p not in have]
    rows = [_row("loaded", sum(sizes[p] for p in loaded), _parts(loaded))]
    if heads:
        each = sum(sizes[p] // wanted[p].shape[-1] * n for p, (n, _) in heads.items())
        fresh = each * sources.count(None)
        whole = sum(sizes[p] for p in heads)
        rows.append(_row("mapped", whole - fresh, _classes(names, sources, imported)))
        rows.append(_row("fresh", fresh, _classes(names, sources, None)))
    if absent:
        rows.append(_row("fresh", sum(sizes[p] for p in absent), f"{_parts(absent)}: not in it"))
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
    layout: tuple[int, int],
    num_theirs: int,
) -> Float[np.ndarray, "... n"]:
    """A copy of `ours` with the values of `theirs` for each class that has a source.

    layout: values per class, and values behind the classes', which are taken always.
    """
    per_class, extra = layout
    lead = ours.shape[:-1]
    out = ours.copy()
    rows = out[..., : len(sources) * per_class].reshape(*lead, len(sources), per_class)
    given = theirs[..., : num_theirs * per_class].reshape(*lead, num_theirs, per_class)
    for i, source in enumerate(sources):
        if source is not None:
            rows[..., i, :] = given[..., source, :]
    out[..., : len(sources) * per_class] = rows.reshape(*lead, -1)
    if extra:
        out[..., -extra:] = theirs[..., -extra:]
    return out


def _class_heads(
    have: dict[str, Any], wanted: dict[str, Any], num_theirs: int, num_ours: int
) -> dict[str, tuple[int, int]]:
    """The layout of each array that has values for each class.

    Heads that do not tell classes apart have one set of values, whose shape shows it.
    """
    heads = {}
    for path in wanted:
        found = _CLASS_HEAD.search(path)
        if not found or path not in have:
            continue
        per_class, extra = layout = _LAYOUTS[found[1] or found[2]]
        ends = [n * per_class + extra for n in (num_theirs, num_ours)]
        lead = wanted[path].shape[:-1]
        if [have[path].shape, wanted[path].shape] == [(*lead, end) for end in ends]:
            heads[path] = layout
    return heads


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _row(kind: str, number: int, what: str) -> list[str]:
    return [kind, f"{number:,}", what]


def _parts(paths: list[str]) -> str:
    return ", ".join(sorted({path.split("/")[1] for path in paths}))


def _classes(names: Sequence[str], sources: Sources, imported: Imported | None) -> str:
    """The classes that were mapped, with their names there, or those that are fresh (None)."""
    found = []
    for name, source in zip(names, sources, strict=True):
        if imported is None and source is None:
            found.append(name)
        elif imported is not None and source is not None:
            theirs = imported.classes["names"][source]
            found.append(name if name == theirs else f"{name} <- {theirs}")
    listed = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
    return f"{len(found)} of {len(names)} classes" + (f": {listed}" if found else "")
