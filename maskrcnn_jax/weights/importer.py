"""From another program's checkpoint to our variables, our config and our own checkpoint."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from maskrcnn_jax import checkpoint, runtime
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import families
from maskrcnn_jax.optimizer import parameter_path
from maskrcnn_jax.weights import detectron2, matterport, mmdetection, readers, torchvision, zoo
from maskrcnn_jax.weights.layout import Rule, Spec
from maskrcnn_jax.weights.presets import PRESETS

FAMILIES: tuple[ModuleType, ...] = (detectron2, torchvision, mmdetection, matterport)
ORIGINALS = "originals.npz"  # beside `checkpoints` in a folder that `save` wrote
_BF16 = "bfloat16:"  # before the names of such tensors in it

# Our variables that depend on the classes.
CLASS_HEADS = (
    "params/box_head/cls_score/",
    "params/box_head/bbox_pred/",
    "params/mask_head/predictor_",
)
# A run has this head or not, whatever its weights have: see `presets.TRAINING_FIELDS`.
_KEYPOINT_HEAD = "keypoint_head"
_KEYPOINT_SCORES = "deconv"
_CLASS_SCORES = "params/box_head/cls_score/bias"


@dataclass(frozen=True)
class Imported:
    """A checkpoint in our layout."""

    spec: Spec | None  # None: our own checkpoint, of a run
    config: dict[str, Any]  # {"preset", "model" (complete), "data", "eval"}
    variables: dict[str, Any]  # {"params", "batch_stats"}, NumPy
    classes: dict[str, Any]  # {"names", "category_ids"}; empty for a bare backbone
    unused: tuple[str, ...]  # their tensors that make nothing of ours
    missing: tuple[str, ...]  # our variables that stay unfilled: all but the backbone's
    originals: dict[str, np.ndarray]  # their tensors that ours do not give back bit for bit


def import_weights(source: str | os.PathLike | readers.Source) -> Imported:
    """Reads a checkpoint of any family; the kind is told by its content.

    Args:
      source: a file of Detectron2, torchvision, MMDetection or Matterport; a name of the zoo, which
        is fetched; a folder of a run or checkpoint of ours; or a file that `readers.read` has read.

    Raises:
      UserError: unreadable, of no known family, a tensor missing or of the wrong shape (both sides
        and both shapes are named), or not finite. Nothing is imported in part.
    """
    if not isinstance(source, readers.Source):
        path = locate(source)
        if path.is_dir():
            return _own(path)
        source = readers.read(path)
    try:
        return _import(source)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from error


def locate(path_or_name: str | os.PathLike) -> Path:
    """The path itself, or the file that a name of the zoo is fetched to."""
    path = Path(path_or_name).expanduser()
    if not path.exists() and str(path_or_name) in zoo.ZOO:
        return zoo.fetch(str(path_or_name), runtime.cache_home() / "weights")
    return path


def save(imported: Imported, folder: str | os.PathLike) -> Path:
    """Writes our own checkpoint, step 0, and beside it the tensors that only an export needs.

    Returns the folder of the step. Raises UserError if `folder` holds checkpoints already.
    """
    folder = Path(folder)
    if (folder / "checkpoints").exists():
        raise UserError(f"{folder}: holds checkpoints already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"originals.{os.getpid()}.tmp.npz"
    np.savez(temporary, **dict(_plain_types(imported.originals)))
    os.replace(temporary, folder / ORIGINALS)
    spec = imported.spec and dataclasses.asdict(imported.spec)
    if spec:
        spec["optional"] = sorted(spec["optional"])
    meta = {
        "step": 0,
        "score": None,
        "window": [],
        "classes": imported.classes,
        "config": imported.config,
        "spec": spec,
    }
    store = checkpoint.Checkpoints(folder, 1)
    store.save(0, imported.variables, meta)
    store.close()
    return store.folder / "0"


def fill(
    variables: dict[str, Any], imported: Imported, skip_heads: bool
) -> tuple[dict[str, Any], list[str]]:
    """Puts imported arrays into a model's variables; what the import lacks stays as it is.

    A keypoint head is left out where the model has none; its last layer stays random where the
    model has another number of keypoints.
    skip_heads: class heads of another size stay as they are, too, instead of an error.
    Returns new variables and lines that tell what was left.
    Raises UserError for another number of classes, naming both and the remedy, or where the
    architectures differ.
    """
    have, wanted = flatten(imported.variables), flatten(variables)
    spare = spare_head(have, wanted)
    have = {n: x for n, x in have.items() if n not in spare}
    wrong = [n for n in have if n not in wanted or have[n].shape != wanted[n].shape]
    counts = [x[_CLASS_SCORES].shape[0] - 1 for x in (have, wanted) if _CLASS_SCORES in x]
    same = len(set(counts)) < 2  # then heads that differ are of another kind
    heads = [n for n in wrong if n in wanted and n.startswith(CLASS_HEADS) and not same]
    others = [n for n in wrong if n not in heads]
    if others:
        shape = lambda tree, n: tree[n].shape if n in tree else "absent"  # noqa: E731
        lines = [f"  {n}: weights {have[n].shape}, model {shape(wanted, n)}" for n in others[:5]]
        more = f"\n  ... and {len(others) - 5} more" if len(others) > 5 else ""
        raise UserError(
            "the weights are of another architecture than the config's model:\n"
            + "\n".join(lines)
            + more
            + "\nSet init.use_preset=true to take the model fields of the weights."
        )
    if heads and not skip_heads:
        raise UserError(
            f"the weights have {counts[0]} classes, the data {counts[1]}; set "
            "init.skip_heads=true to leave the class heads random: " + ", ".join(heads)
        )
    lines = [f"left random, of other classes: {n} {wanted[n].shape}" for n in heads]
    if spare:
        lines.append(f"left out, as {other_keypoints(spare, wanted)}: {len(spare)} arrays")
    left = [n for n in wanted if n not in have]
    if left:
        rooms = sorted({n.split("/")[1] for n in left})
        lines.append(f"left random, not in the weights: {len(left)} arrays of {', '.join(rooms)}")
    taken = {n: x for n, x in have.items() if n not in heads}
    return {**variables, **unflatten({**wanted, **taken})}, lines


def spare_head(have: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The paths in `have` of what only fits its own keypoints; both are flat.

    All of a keypoint head, if `wanted` has no such head; its last layer, if the number differs.
    """
    head = [path for path in have if path.split("/")[1] == _KEYPOINT_HEAD]
    if not any(path.split("/")[1] == _KEYPOINT_HEAD for path in wanted):
        return head
    last = [path for path in head if path.split("/")[2] == _KEYPOINT_SCORES and path in wanted]
    return [path for path in last if have[path].shape[-1] != wanted[path].shape[-1]]


def other_keypoints(spare: Sequence[str], wanted: Mapping[str, Any]) -> str:
    """What the model has, for which the paths `spare_head` gave are of no use."""
    number = set(spare) <= set(wanted)
    return f"the model has {'another number of' if number else 'no'} keypoints"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"params/backbone/stem/conv/kernel": array} of a tree of variables."""
    return {parameter_path(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, x in flat.items():
        *groups, name = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = x
    return tree


def recognise(tensors: Mapping[str, np.ndarray]) -> ModuleType:
    """The family's module. Raises UserError for tensors of none."""
    for module in FAMILIES:
        if module.recognises(tensors):
            return module
    some = ", ".join(list(tensors)[:5]) or "none"
    raise UserError(
        "its tensors are those of no family known here ("
        + ", ".join(module.NAME for module in FAMILIES)
        + f"); the first are: {some}"
    )


def family(name: str) -> ModuleType:
    """The module of a family's NAME."""
    return next(module for module in FAMILIES if name == module.NAME)


def model_shapes(model_config: Mapping[str, Any], num_classes: int) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all variables of the model that a complete `model` group describes."""
    model = families.build(ConfigDict(dict(model_config)), num_classes)
    return {path: x.shape for path, x in flatten(families.variable_shapes(model)).items()}


def _import(source: readers.Source) -> Imported:
    tensors = source.tensors
    module = recognise(tensors)
    spec = module.describe(tensors)
    if hasattr(module, "refine"):
        spec = module.refine(spec, source.path, source.extra)
    preset = PRESETS[spec.preset]
    config = {"preset": spec.preset, **preset, "model": preset["model"] | spec.model}
    shapes = model_shapes(config["model"], spec.num_classes or 1)
    rules = module.rules(spec)
    _check_complete(rules, tensors, shapes, whole=spec.num_classes is not None)
    flat: dict[str, np.ndarray] = {}
    originals: dict[str, np.ndarray] = {}
    for rule in rules:
        found = _apply(rule, tensors, shapes)
        flat |= dict(zip(rule.targets, found, strict=True))
        back = zip(rule.sources, rule.backward(*found), strict=True)
        originals |= {n: tensors[n] for n, x in back if not same_bits(tensors[n], x)}
    used = {name for rule in rules for name in rule.sources}
    unused = tuple(name for name in tensors if name not in used)
    originals |= {name: tensors[name] for name in unused}
    missing = tuple(path for path in shapes if path not in flat)
    return Imported(spec, config, unflatten(flat), _classes(spec), unused, missing, originals)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Same type, shape and bytes: -0 is not 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    views = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return bool(np.array_equal(*views))


def _check_complete(
    rules: list[Rule], tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], whole: bool
) -> None:
    lost = [name for rule in rules for name in rule.sources if name not in tensors]
    if lost:
        used = {name for rule in rules for name in rule.sources}
        spare = [name for name in tensors if name not in used]
        raise UserError(
            f"{len(lost)} tensors are missing: {some(lost)}"
            + (f"; {len(spare)} are there that nothing asks for: {some(spare)}" if spare else "")
        )
    targets = {path for rule in rules for path in rule.targets}
    if whole and (unfilled := [path for path in shapes if path not in targets]):
        raise UserError(f"no tensor fills {some(unfilled)}")
    if strange := sorted(targets - shapes.keys()):
        raise UserError(f"the model that its tensors describe has no {some(strange)}")


def _apply(
    rule: Rule, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[np.ndarray, ...]:
    sources = [tensors[name] for name in rule.sources]
    theirs = ", ".join(
        f"{name} {tuple(x.shape)}" for name, x in zip(rule.sources, sources, strict=True)
    )
    wanted = ", ".join(f"{path} {shapes[path]}" for path in rule.targets)
    if any(x.dtype.kind not in "fiu" and x.dtype != ml_dtypes.bfloat16 for x in sources):
        raise UserError(f"{theirs}: not numbers, but {sources[0].dtype}")
    with np.errstate(all="ignore"):
        try:
            found = rule.forward(*sources)
        except (ValueError, IndexError, TypeError) as error:
            raise UserError(f"shapes differ: {theirs} does not make {wanted}") from error
    for path, x in zip(rule.targets, found, strict=True):
        if x.shape != shapes[path]:
            raise UserError(
                f"shapes differ: {theirs} makes {path} {x.shape}, the model has {shapes[path]}"
            )
        if not np.isfinite(x).all():
            raise UserError(f"{theirs}: makes values in {path} that are not finite")
    return found


def _classes(spec: Spec) -> dict[str, Any]:
    count = spec.num_classes or 0
    names = spec.class_names or tuple(f"class {i}" for i in range(1, count + 1))
    ids = spec.category_ids or tuple(range(1, count + 1))
    return {"names": list(names), "category_ids": list(ids)}


def _own(path: Path) -> Imported:
    """Our own checkpoint; what `save` kept of its origin, if it was imported."""
    folder = checkpoint.find(path)
    variables, meta = checkpoint.load_variables(folder)
    spec, originals = meta.get("spec"), {}
    if spec is not None:
        lists = ("class_names", "category_ids", "warnings")
        spec |= {k: None if spec[k] is None else tuple(spec[k]) for k in lists}
        spec = Spec(**{**spec, "optional": frozenset(spec["optional"])})
        try:
            with np.load(folder.parents[1] / ORIGINALS) as arrays:
                originals = {
                    name.removeprefix(_BF16): x.view(ml_dtypes.bfloat16)
                    if name.startswith(_BF16)
                    else x
                    for name, x in arrays.items()
                }
        except OSError as error:
            raise UserError(f"{folder.parents[1] / ORIGINALS}: {error}") from error
    variables = {k: variables[k] for k in ("params", "batch_stats")}
    return Imported(spec, meta["config"], variables, meta["classes"], (), (), originals)


def _plain_types(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The bits of bfloat16, which NumPy's files do not know, under a name that tells it."""
    for name, x in tensors.items():
        is_bf16 = x.dtype == ml_dtypes.bfloat16
        yield (f"{_BF16}{name}", x.view(np.uint16)) if is_bf16 else (name, x)


def some(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    more = f", ... and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
