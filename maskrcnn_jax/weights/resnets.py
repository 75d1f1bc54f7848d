"""What the families' ResNets share: our paths, and the depth and widths that the tensors tell."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.resnet import STAGES
from maskrcnn_jax.weights import layout

Tensors = Mapping[str, np.ndarray]


class Unit(NamedTuple):
    """A convolution with its norm: the stem (stage 1), or a layer of a block."""

    stage: int  # 1 the stem, 2 to 5 as in res2
    block: int
    layer: str  # "conv1", "conv2", "conv3", "shortcut"

    @property
    def path(self) -> str:
        """Our path inside the backbone."""
        if self.stage == 1:
            return "stem"
        return f"res{self.stage}_block{self.block}/{self.layer}"


_MOST = 64  # of layers or blocks in a row; ResNet-152 has 36

STEM = Unit(1, 0, "conv1")


def units(depth: int) -> Iterator[Unit]:
    """All of them in a ResNet of this depth, as the model builds it at any width."""
    yield STEM
    layers = ("conv1", "conv2") if depth < 50 else ("conv1", "conv2", "conv3")
    for stage, blocks in enumerate(STAGES[depth], 2):
        for block in range(blocks):
            # A basic block of res2 keeps its number of channels, and so needs no shortcut.
            changes = block == 0 and (stage > 2 or depth >= 50)
            for layer in (*layers, "shortcut") if changes else layers:
                yield Unit(stage, block, layer)


def rules(
    depth: int,
    conv: Callable[[Unit], str],
    norm: Callable[[Unit, str], list[layout.Rule]],
    res5: str = "backbone",
) -> list[layout.Rule]:
    """The backbone's rules.

    conv: name of a unit's kernel. norm: the rules of a unit's norm, given our path of it.
    res5: the module that has the last stage.
    """
    found = []
    for unit in units(depth):
        path = f"{res5 if unit.stage == 5 else 'backbone'}/{unit.path}"
        found.append(layout.conv(conv(unit), f"params/{path}/conv/kernel"))
        found += norm(unit, f"batch_stats/{path}/norm")
    return found


def describe(tensors: Tensors, conv: Callable[[Unit], str]) -> dict[str, Any]:
    """The `model` fields of a backbone: depth, width, groups, width_per_group.

    conv: name of a unit's kernel. Raises UserError where the blocks are those of no ResNet.
    """
    blocks = tuple(_count(tensors, stage, conv) for stage in (2, 3, 4, 5))
    deep = any(conv(Unit(stage, 0, "conv3")) in tensors for stage in (2, 3, 4, 5))
    depths = [d for d, counts in STAGES.items() if counts == blocks and (d >= 50) == deep]
    if not depths:
        known = ", ".join(f"{d} {counts}" for d, counts in STAGES.items())
        raise UserError(
            f"the backbone has {blocks} blocks in its four stages (as {conv(Unit(2, 0, 'conv1'))}),"
            f" which is no ResNet that is known here: {known}; tensors are missing or renamed"
        )
    fields = {"depth": depths[0]}
    fields |= sizes(tensors, {"width": (conv(STEM), 0)})
    inner = tensors.get(conv(Unit(2, 0, "conv2")))
    if deep and inner is not None and inner.ndim == 4 and inner.shape[1]:
        groups = inner.shape[0] // inner.shape[1]
        width = fields.get("width", 64)
        fields |= {"groups": groups, "width_per_group": inner.shape[0] * 64 // (groups * width)}
    return fields


def sizes(tensors: Tensors, wanted: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """{field: length of an axis of a tensor}, of those tensors that are there."""
    return {
        field: tensors[name].shape[axis]
        for field, (name, axis) in wanted.items()
        if name in tensors and tensors[name].ndim > axis
    }


def count(tensors: Tensors, name: Callable[[int], str], start: int = 0) -> int:
    """How many name(start), name(start + 1), ... there are, up to the last one that exists.

    Not up to the first gap: a layer that is missing must be missed.
    """
    last = (i for i in reversed(range(start, start + _MOST)) if name(i) in tensors)
    return next(last, start - 1) - start + 1


def num_classes(tensors: Tensors, names: tuple[str, str]) -> int:
    """Classes without background, by the rows of the class logits' weight or bias."""
    for name in names:
        if name in tensors and tensors[name].ndim and tensors[name].shape[0] > 1:
            return tensors[name].shape[0] - 1
    raise UserError(
        f"there is no usable {names[0]} (class logits): this is no whole Mask R-CNN, or tensors "
        "are missing or renamed"
    )


def torch_names(prefix: str) -> tuple[Callable[[Unit], str], Callable[[Unit], str]]:
    """torchvision's and MMDetection's names: of a unit's kernel, and the prefix of its norm."""

    def base(unit: Unit) -> str:
        return prefix if unit.stage == 1 else f"{prefix}layer{unit.stage - 1}.{unit.block}."

    def conv(unit: Unit) -> str:
        layer = "downsample.0" if unit.layer == "shortcut" else unit.layer
        return f"{base(unit)}{layer}.weight"

    def norm(unit: Unit) -> str:
        layer = "downsample.1" if unit.layer == "shortcut" else unit.layer.replace("conv", "bn")
        return f"{base(unit)}{layer}"

    return conv, norm


def _count(tensors: Tensors, stage: int, conv: Callable[[Unit], str]) -> int:
    return count(tensors, lambda block: conv(Unit(stage, block, "conv1")))
