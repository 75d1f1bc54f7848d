"""What a run starts from: init.checkpoint, of a run of ours or of another program."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maskrcnn_jax import checkpoint, transfer
from maskrcnn_jax.data.coco import CocoData
from maskrcnn_jax.datasets import check_classes, classes_of
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import importer, zoo
from maskrcnn_jax.weights.importer import Imported
from maskrcnn_jax.weights.presets import BACKBONE_FIELDS, TRAINING_FIELDS

Say = Callable[[str], None]
Table = Callable[[str, list[str], list[list[str]]], None]


def read_foreign(config: ConfigDict, say: Say) -> Imported | None:
    """Imports init.checkpoint if it is another program's; None for a run's own, or without one.

    say: gets one line for what was read, and one for each warning.
    """
    path = config.init.checkpoint
    folder = Path(path).expanduser()
    if not path or not (folder.is_file() or path in zoo.ZOO or _was_imported(folder)):
        return None
    imported = importer.import_weights(path)
    spec = imported.spec
    classes = f"{spec.num_classes} classes" if spec.num_classes else "a backbone alone"
    say(f"{path}: {spec.family} {spec.variant}, ResNet-{spec.model['depth']}, {classes}")
    for warning in spec.warnings:
        say(f"WARNING: {warning}")
    if imported.unused:
        say(f"{path}: {len(imported.unused)} tensors are not used: {', '.join(imported.unused)}")
    return imported


def read_run(config: ConfigDict, say: Say) -> Imported | None:
    """The own run that init.checkpoint names, where init.heads="match" lets its classes be others.

    None for another program's weights, or without "match": then the config's model must be the
    run's, and so must the classes. say: gets one line.
    """
    path = config.init.checkpoint
    if not path or config.init.heads != "match" or not _is_own(Path(path).expanduser()):
        return None
    imported = importer.import_weights(path)
    say(f"{path}: a run, {len(imported.classes['names'])} classes")
    return imported


def adopt_preset(config: ConfigDict, imported: Imported, say: Say, evaluates: bool = False) -> None:
    """Puts the fields that the weights expect into the config, unless init.use_preset is false.

    Training keeps its own recipe (`presets.TRAINING_FIELDS`); evaluation takes that over, too, and
    the rules of resizing and pasting. The sizes of the images stay the config's. Each field that
    changes is told.
    """
    if not config.init.use_preset:
        return
    bare = imported.spec is not None and imported.spec.num_classes is None
    names = _adopted(config, whole=not bare, evaluates=evaluates)
    _replace(config, {"model": _known(imported.config["model"], names)}, say)
    if evaluates:
        rule = {"resize_rule": imported.config["data"]["resize_rule"]}
        _replace(config, {"data": rule, "eval": imported.config["eval"]}, say)


def keep_preset(config: ConfigDict, saved: Mapping[str, Any], say: Say) -> None:
    """For a run that goes on: the fields that it adopted when it began, from its saved config.

    So it needs the foreign file no longer.
    """
    path, i = Path(config.init.checkpoint).expanduser(), config.init
    if not i.checkpoint or not i.use_preset or (_is_own(path) and i.heads != "match"):
        return
    names = _adopted(config, whole=True, evaluates=False)
    _replace(config, {"model": _known(saved["model"], names)}, say)


def load_initial(
    config: ConfigDict,
    variables: dict[str, Any],
    data: CocoData,
    imported: Imported | None,
    say: Say,
    table: Table,
) -> dict[str, Any]:
    """Fills random variables from init.checkpoint: all of them, or the backbone's.

    imported: what `read_foreign` or `read_run` gave. say: gets a line for everything that stays
    random. table: gets title, header and rows of what init.heads="match" took.
    Raises UserError when the weights are of another architecture or other classes.
    """
    path, part = config.init.checkpoint, config.init.part
    if imported is not None:
        if part == "backbone" or (imported.spec and imported.spec.num_classes is None):
            imported = replace(imported, variables=_only_backbone(imported.variables, variables))
        matches = config.init.heads == "match"
        if part != "backbone" and imported.classes["names"] and not matches:
            _compare_names(imported, data, say)
        try:
            if matches:
                variables, rows, lines = transfer.take(variables, imported, data.names)
                for line in lines:
                    say(f"{path}: {line}")
                table(f"from {path}", transfer.HEADER, rows)
                return variables
            variables, lines = importer.fill(variables, imported, config.init.skip_heads)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        for line in lines:
            say(f"{path}: {line}")
        return variables
    source, meta = checkpoint.load_variables(path)
    wanted = variables
    if part == "backbone":
        source, wanted = _only_backbone(source, variables), _only_backbone(variables, variables)
    else:
        check_classes(meta["classes"], data, path)
    for name, tree in wanted.items():
        shapes = checkpoint.shapes_of(source[name]), checkpoint.shapes_of(tree)
        checkpoint.check_same(*shapes, where=path)
    return {name: {**variables[name], **source[name]} for name in variables}


def evaluated_classes(imported: Imported, data: CocoData, where: str) -> dict[str, Any]:
    """The table of classes of imported weights, {"names", "category_ids"}, for an evaluation.

    Named weights may have more classes than the data, as torchvision's 91 have; those without
    names get the data's, if they are as many. Raises UserError for other classes.
    """
    if imported.spec.class_names:
        theirs = imported.classes
        if not _pairs(classes_of(data)) <= _pairs(theirs):
            check_classes(theirs, data, where)
        return theirs
    if imported.spec.num_classes != len(data.names):
        raise UserError(
            f"{where}: has {imported.spec.num_classes or 'no'} classes, the data {len(data.names)};"
            " evaluate weights on the data set that they learnt"
        )
    return classes_of(data)


def _pairs(classes: Mapping[str, Any]) -> set[tuple[int, str]]:
    return set(zip(classes["category_ids"], classes["names"], strict=True))


def _adopted(config: ConfigDict, whole: bool, evaluates: bool) -> tuple[str, ...]:
    if not whole or config.init.part == "backbone":
        return BACKBONE_FIELDS
    kept = ("dtype", "remat", "freeze_at") if evaluates else TRAINING_FIELDS
    return tuple(name for name in config.model if name not in kept)


def _known(model: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """These fields of a saved group `model`, without those that came after its version."""
    return {f: _tuples(model[f]) for f in names if f in model}


def _replace(config: ConfigDict, groups: Mapping[str, Mapping[str, Any]], say: Say) -> None:
    for group, fields in groups.items():
        for name, value in fields.items():
            before = config[group][name]
            if before != value:
                say(f"config.{group}.{name}: {before!r} -> {value!r}, as the weights expect")
                config[group][name] = value


def _compare_names(imported: Imported, data: CocoData, say: Say) -> None:
    theirs, ours = imported.classes["names"], classes_of(data)["names"]
    if len(theirs) == len(ours) and theirs != ours and imported.spec.class_names:
        first = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if len({*pair}) > 1)
        say(
            f"WARNING: the weights' classes have other names than the data's: number {first} is "
            f"{theirs[first]!r} there and {ours[first]!r} here; the heads start from theirs"
        )


def _only_backbone(
    variables: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The backbone alone, its res5 where `wanted` has it: there, or in the shared head of C4."""
    found: dict[str, dict[str, Any]] = {}
    for name, tree in variables.items():
        blocks = {**tree.get("backbone", {}), **tree.get("shared_head", {})}
        moved = {
            k: x for k, x in blocks.items() if k in wanted.get(name, {}).get("shared_head", {})
        }
        rest = {k: x for k, x in blocks.items() if k not in moved}
        rooms = {"backbone": rest, "shared_head": moved}
        found[name] = {room: parts for room, parts in rooms.items() if parts}
    return found


def _is_own(path: Path) -> bool:
    return path.is_dir() and not _was_imported(path)


def _was_imported(path: Path) -> bool:
    """Whether a folder is a checkpoint of ours that came from another program."""
    if not path.is_dir():
        return False
    return checkpoint.read_meta(checkpoint.find(path)).get("spec") is not None


def _tuples(value: Any) -> Any:
    """JSON gives tuples back as lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
