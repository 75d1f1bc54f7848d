"""From our variables to a checkpoint of another program: train here, deploy there."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import importer, writers
from maskrcnn_jax.weights.layout import BN_EPS, Rule, Spec, float32, float64
from maskrcnn_jax.weights.presets import PRESETS, TRAINING_FIELDS

# What the models of all these families have in common, and what the rules of their tensors expect.
COMMON = {
    "backbone": "resnet",
    "keypoints": 0,
    "class_agnostic_boxes": False,
    "cascade_ious": (),
    "mask_branch": "fcn",
    "mask_loss": "sigmoid",
    "class_agnostic_masks": False,
}

WRITERS = {
    ".pkl": writers.write_detectron2,
    ".pth": writers.write_torch,
    ".safetensors": writers.write_safetensors,
    ".h5": writers.write_keras,
}


def export(
    variables: Mapping[str, Any], spec: Spec, originals: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Their tensors from our variables.

    Args:
      variables: {"params", "batch_stats"}; batch norms are folded as they stand.
      spec: of the import, or `spec_for` of a model of our own.
      originals: of the import. With them unchanged variables give the imported tensors back bit
        for bit, and changed ones keep what only the peer has: statistics of norms, rows of the
        background. Without them norms are neutral but for weight and bias, such rows zero.

    Raises:
      UserError: a variable that the family has no place for, or lacks.
    """
    flat = _fold_batch_norms(importer.flatten(variables))
    rules = importer.family(spec.family).rules(spec)
    targets = {path for rule in rules for path in rule.targets}
    if lost := sorted(targets - flat.keys()):
        raise UserError(f"export to {spec.family}: the model has no {importer.some(lost)}")
    if strange := sorted(flat.keys() - targets):
        raise UserError(
            f"export to {spec.family}: it has no place for {importer.some(strange)}; its model is "
            "another"
        )
    originals = originals or {}
    tensors: dict[str, np.ndarray] = {}
    for rule in rules:
        arrays = _backward(rule, tuple(flat[p] for p in rule.targets), originals)
        tensors |= dict(zip(rule.sources, arrays, strict=True))
    return tensors | {name: x for name, x in originals.items() if name not in tensors}


def _frozen(value: Any) -> Any:
    """A list as a tuple: JSON knows lists alone."""
    return tuple(value) if isinstance(value, list) else value


def spec_for(family: str, model: Mapping[str, Any], classes: Mapping[str, Any]) -> Spec:
    """The Spec under which a model of our own is exported.

    family: "detectron2", "torchvision" or "matterport". model: its complete `model` group.
    classes: {"names", "category_ids"}. The Spec's warnings name the fields in which the peer's own
    model differs: the user has to set these there. Raises UserError for architectures that the peer
    does not have.
    """
    variants = {
        "detectron2": [
            (variant, preset, {"neck": neck, "rpn_convs": 1, "box_convs": 0})
            for variant, preset, neck in (
                ("model", "detectron2", "fpn"),
                ("c4", "detectron2_c4", "c4"),
                ("dc5", "detectron2_dc5", "dc5"),
            )
        ],
        "torchvision": [
            ("v1_trained", "torchvision_v1", {"neck": "fpn", "box_convs": 0, "box_fcs": 2}),
            ("v2", "torchvision_v2", {"neck": "fpn", "box_fcs": 1}),
        ],
        "matterport": [
            (
                "model",
                "matterport",
                {"neck": "fpn", "depth": depth, "rpn_convs": 1, "box_convs": 0, "box_fcs": 2},
            )
            for depth in (50, 101)
        ],
    }
    if family not in variants:
        raise UserError(f"export to {family!r}: choose one of {tuple(variants)}")
    if other := {f: model[f] for f, x in COMMON.items() if _frozen(model[f]) != x}:
        ours = ", ".join(f"model.{f}={x!r}" for f, x in other.items())
        theirs = ", ".join(f"{f}={COMMON[f]!r}" for f in other)
        raise UserError(f"export to {family}: it has no model with {ours}, only {theirs}")
    fits = [v for v in variants[family] if all(model[f] == x for f, x in v[2].items())]
    if not fits:
        forms = [", ".join(f"{f}={x}" for f, x in v[2].items()) for v in variants[family]]
        ours = {f: model[f] for f in dict.fromkeys(f for v in variants[family] for f in v[2])}
        raise UserError(f"export to {family}: its model has {' or '.join(forms)}, ours {ours}")
    variant, preset, _ = fits[0]
    theirs = PRESETS[preset]["model"]
    warnings = tuple(
        f"model.{name}: {value!r} in {preset}, {model[name]!r} here"
        for name, value in theirs.items()
        if name not in (*TRAINING_FIELDS, "norm", "head_norm") and model[name] != value
    )
    return Spec(
        family,
        preset,
        len(classes["names"]),
        tuple(classes["names"]),
        tuple(classes["category_ids"]),
        dict(model),
        variant,
        warnings=warnings,
    )


def save(tensors: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Writes .pth (torch's zip format), .pkl (Detectron2's zoo), .safetensors or .h5 (Keras 2).

    Atomic: whole or not at all. Raises UserError for other endings.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: write a file that ends with {', '.join(WRITERS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        WRITERS[path.suffix](tensors, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _backward(
    rule: Rule, targets: tuple[np.ndarray, ...], originals: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, ...]:
    plain = rule.backward(*targets)
    if originals.keys().isdisjoint(rule.sources):
        return plain
    like = tuple(originals.get(n, x) for n, x in zip(rule.sources, plain, strict=True))
    now = rule.forward(*like)
    if all(importer.same_bits(a, b) for a, b in zip(now, targets, strict=True)):
        return like
    return rule.backward(*targets, like=like)


def _fold_batch_norms(flat: dict[str, Any]) -> dict[str, Any]:
    """Batch norms become frozen ones in the ResNet, and biases of convolutions elsewhere."""
    flat = {path: np.asarray(x) for path, x in flat.items()}
    for mean_path in [path for path in flat if path.endswith("/norm/mean")]:
        prefix = mean_path.removeprefix("batch_stats/").removesuffix("/norm/mean")
        mean, var = (
            float64(flat.pop(mean_path)),
            float64(flat.pop(f"batch_stats/{prefix}/norm/var")),
        )
        scale = float64(flat.pop(f"params/{prefix}/norm/scale")) / np.sqrt(var + BN_EPS)
        bias = float64(flat.pop(f"params/{prefix}/norm/bias")) - mean * scale
        if prefix.startswith(("backbone/", "shared_head/")):
            flat[f"batch_stats/{prefix}/norm/scale"] = float32(scale)
            flat[f"batch_stats/{prefix}/norm/bias"] = float32(bias)
        else:
            kernel = f"params/{prefix}/conv/kernel"
            flat[kernel] = float32(float64(flat[kernel]) * scale)
            flat[f"params/{prefix}/conv/bias"] = float32(bias)
    return flat
