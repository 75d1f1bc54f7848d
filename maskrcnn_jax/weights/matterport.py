"""Matterport: the Mask R-CNN of Keras, its COCO weights and what people fine-tuned from them.

Names are `layer/weight`, as `readers` makes them of an .h5. Every convolution has a bias, also
before a norm; norms have an eps of 1e-3. Objectness is a softmax of two, whose difference is our
logit. Boxes and deltas are (y, x, h, w), the background is class 0 with deltas and masks of its
own. Kernels lie as ours, but for the transposed convolution.
"""

from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import coco_names, layout, resnets
from maskrcnn_jax.weights.layout import Arrays, Rule, Spec, float32, float64

NAME = "matterport"

_EPS = 1e-3
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_BRANCHES = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}
_SWAP = (1, 0, 3, 2)  # (dy, dx, dh, dw) to (dx, dy, dw, dh) and back
_SIDE = 7  # of Matterport's pooled rois


def recognises(tensors: Mapping[str, np.ndarray]) -> bool:
    """By the names of the heads, or of the RPN where those of the heads are lost."""
    return any(n.startswith(("mrcnn_", "rpn_conv_shared/")) for n in tensors)


def describe(tensors: Mapping[str, np.ndarray]) -> Spec:
    """Depth, widths and number of classes."""
    kernels = {n: x.transpose(3, 2, 0, 1) for n, x in tensors.items() if x.ndim == 4}
    model = resnets.describe(kernels, lambda unit: f"{_conv(unit)}/kernel")
    model |= resnets.sizes(
        tensors,
        {
            "fpn_channels": ("fpn_p2/kernel", 3),
            "rpn_channels": ("rpn_conv_shared/kernel", 3),
            "box_pool_size": ("mrcnn_class_conv1/kernel", 0),
            "box_fc_dim": ("mrcnn_class_conv1/kernel", 3),
            "mask_channels": ("mrcnn_mask_conv1/kernel", 3),
        },
    )
    model["mask_convs"] = resnets.count(tensors, "mrcnn_mask_conv{}/kernel".format, 1)
    num_classes = _num_classes(tensors)
    coco = num_classes == len(coco_names.NAMES)
    return Spec(
        NAME,
        "matterport",
        num_classes,
        class_names=coco_names.NAMES if coco else None,
        category_ids=coco_names.CATEGORY_IDS if coco else None,
        model=model,
        variant="model",
    )


def rules(spec: Spec) -> list[Rule]:
    """One rule per layer, from their names to our paths.

    In the order of the layers of Keras's model, which an exported file has to keep: without
    `by_name`, Keras fills its layers one after another.
    """
    found = _backbone(spec.model["depth"])
    for level in (5, 4, 3, 2):
        found += _plain(f"fpn_c{level}p{level}", f"params/fpn/lateral{level}/conv")
    for level in (5, 2, 3, 4):
        found += _plain(f"fpn_p{level}", f"params/fpn/output{level}/conv")
    found += _plain("rpn_conv_shared", "params/rpn_head/conv1/conv")
    found += [_objectness(end) for end in ("kernel", "bias")]
    found += [
        _reordered(f"rpn_bbox_pred/{end}", f"params/rpn_head/deltas/{end}", 0)
        for end in ("kernel", "bias")
    ]
    for i, side in enumerate((spec.model.get("box_pool_size", _SIDE), 1), 1):
        found.append(
            _folded(f"mrcnn_class_conv{i}", f"mrcnn_class_bn{i}", f"params/box_head/fc{i}", side)
        )
    found += [
        rule
        for end in ("kernel", "bias")
        for rule in (
            layout.single(
                f"mrcnn_class_logits/{end}",
                f"params/box_head/cls_score/{end}",
                lambda x: np.roll(float32(x), -1, -1),
                lambda x: np.roll(x, 1, -1),
            ),
            _reordered(f"mrcnn_bbox_fc/{end}", f"params/box_head/bbox_pred/{end}", 1),
        )
    ]
    for i in range(1, spec.model["mask_convs"] + 1):
        path = f"params/mask_head/conv{i}/conv"
        found.append(_folded(f"mrcnn_mask_conv{i}", f"mrcnn_mask_bn{i}", path))
    found.append(
        layout.single(
            "mrcnn_mask_deconv/kernel",
            "params/mask_head/deconv/kernel",
            lambda k: layout.axes(float32(k), (0, 1, 3, 2)),
            lambda k: k.transpose(0, 1, 3, 2),
        )
    )
    found.append(_same("mrcnn_mask_deconv/bias", "params/mask_head/deconv/bias"))
    return found + [_masks("kernel"), _masks("bias")]


def _backbone(depth: int) -> list[Rule]:
    found: list[Rule] = []
    for unit in resnets.units(depth):
        path = f"backbone/{unit.path}"
        kernel = _same(f"{_conv(unit)}/kernel", f"params/{path}/conv/kernel")
        norm = _frozen(_conv(unit), _norm(unit), f"batch_stats/{path}/norm")
        if unit.layer == "shortcut":  # Keras has both convolutions of a sum before their norms
            found[-1:] = [kernel, found[-1], norm]
        else:
            found += [kernel, norm]
    return found


def _conv(unit: resnets.Unit) -> str:
    if unit.stage == 1:
        return "conv1"
    return f"res{unit.stage}{chr(ord('a') + unit.block)}_branch{_BRANCHES[unit.layer]}"


def _norm(unit: resnets.Unit) -> str:
    return "bn_conv1" if unit.stage == 1 else f"bn{_conv(unit).removeprefix('res')}"


def _num_classes(tensors: Mapping[str, np.ndarray]) -> int:
    for end in ("kernel", "bias"):
        x = tensors.get(f"mrcnn_class_logits/{end}")
        if x is not None and x.ndim and x.shape[-1] > 1:
            return x.shape[-1] - 1
    raise UserError(
        "there is no usable mrcnn_class_logits (class logits): the file has no heads, or tensors "
        "are missing or renamed; save the whole model"
    )


def _same(source: str, target: str) -> Rule:
    return layout.copy(source, target)


def _plain(source: str, target: str) -> list[Rule]:
    """A convolution with a bias; both arguments are prefixes."""
    return [_same(f"{source}/{end}", f"{target}/{end}") for end in ("kernel", "bias")]


def _frozen(conv: str, norm: str, target: str) -> Rule:
    """A convolution's bias and the norm behind it become a scale and a bias."""
    names = (f"{conv}/bias", *(f"{norm}/{end}" for end in _NORM))

    def forward(offset: np.ndarray, *norm: np.ndarray) -> Arrays:
        layout.check_equal_shapes(offset, *norm)
        scale, shift = _affine(*norm)
        return float32(scale), float32(shift + float64(offset) * scale)

    def backward(scale: np.ndarray, bias: np.ndarray, like: Arrays | None = None) -> Arrays:
        offset, mean, var = (like[0], *like[3:]) if like else _neutral(scale)
        gamma = float64(scale) * np.sqrt(float64(var) + _EPS)
        beta = float64(bias) - (float64(offset) - float64(mean)) * float64(scale)
        return offset, float32(gamma), float32(beta), mean, var

    return Rule(names, (f"{target}/scale", f"{target}/bias"), forward, backward)


def _folded(conv: str, norm: str, target: str, side: int = 0) -> Rule:
    """A convolution with a bias and the norm behind it become one with a bias.

    side: of a convolution that covers its whole input of that side, and so is our dense layer on
    the flattened cells; 0: a convolution with us, too.
    """
    names = (f"{conv}/kernel", f"{conv}/bias", *(f"{norm}/{end}" for end in _NORM))

    def forward(kernel: np.ndarray, offset: np.ndarray, *norm: np.ndarray) -> Arrays:
        layout.check_equal_shapes(kernel[0, 0, 0], offset, *norm)
        scale, shift = _affine(*norm)
        folded = float32(float64(kernel) * scale)
        bias = float32(shift + float64(offset) * scale)
        return folded.reshape(-1, folded.shape[-1]) if side else folded, bias

    def backward(kernel: np.ndarray, bias: np.ndarray, like: Arrays | None = None) -> Arrays:
        if like is None:
            offset, mean, var = _neutral(bias)
            gamma = np.ones_like(bias)
        else:
            offset, gamma, _, mean, var = like[1:]
            # A channel that the norm had switched off gets a weight that lets it pass.
            gamma = float32(np.where(gamma == 0, np.sqrt(float64(var) + _EPS), gamma))
        scale = float64(gamma) / np.sqrt(float64(var) + _EPS)
        beta = float32(float64(bias) - (float64(offset) - float64(mean)) * scale)
        shape = (side, side, -1, kernel.shape[-1]) if side else kernel.shape
        plain = float32(float64(kernel) / scale).reshape(shape)
        return plain, offset, gamma, beta, mean, var

    return Rule(names, (f"{target}/kernel", f"{target}/bias"), forward, backward)


def _affine(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    scale = float64(gamma) / np.sqrt(float64(var) + _EPS)
    return scale, float64(beta) - float64(mean) * scale


def _neutral(scale: np.ndarray) -> Arrays:
    """Convolution bias, mean and variance that leave gamma and beta as they are."""
    return np.zeros_like(scale), np.zeros_like(scale), np.full_like(scale, 1 - _EPS)


def _objectness(end: str) -> Rule:
    """The softmax of (background, object) is the sigmoid of their difference."""

    def forward(x: np.ndarray) -> Arrays:
        pairs = float64(x).reshape(*x.shape[:-1], -1, 2)
        return (float32(pairs[..., 1] - pairs[..., 0]),)

    def backward(x: np.ndarray, like: Arrays | None = None) -> Arrays:
        background = np.zeros_like(x) if like is None else like[0].reshape(*x.shape, 2)[..., 0]
        pairs = np.stack([background, float32(float64(background) + x)], -1)
        return (pairs.reshape(*x.shape[:-1], 2 * x.shape[-1]),)

    source, target = f"rpn_class_raw/{end}", f"params/rpn_head/objectness/{end}"
    return Rule((source,), (target,), forward, backward)


def _reordered(source: str, target: str, skipped: int) -> Rule:
    """Deltas [..., n * 4] in our order, without the first `skipped` of the n, the background's."""

    def swap(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-1], -1, 4)[..., _SWAP]

    def forward(x: np.ndarray) -> Arrays:
        return (swap(float32(x))[..., skipped:, :].reshape(*x.shape[:-1], -1),)

    def backward(x: np.ndarray, like: Arrays | None = None) -> Arrays:
        kept = swap(x)
        first = np.zeros((*kept.shape[:-2], skipped, 4), kept.dtype)
        if like is not None and skipped:
            first = like[0].reshape(*kept.shape[:-2], -1, 4)[..., :skipped, :]
        return (np.concatenate([first, kept], -2).reshape(*x.shape[:-1], -1),)

    return Rule((source,), (target,), forward, backward)


def _masks(end: str) -> Rule:
    """The logits of the masks without the background's channel."""

    def forward(x: np.ndarray) -> Arrays:
        ours = float32(x)[..., 1:]
        return (np.ascontiguousarray(ours[0, 0] if end == "kernel" else ours),)

    def backward(x: np.ndarray, like: Arrays | None = None) -> Arrays:
        x = x[None, None] if end == "kernel" else x
        first = like[0][..., :1] if like else np.zeros((*x.shape[:-1], 1), x.dtype)
        return (np.concatenate([first, x], -1),)

    target = f"params/mask_head/predictor_{end}"
    return Rule((f"mrcnn_mask/{end}",), (target,), forward, backward)
