"""The algebra between PyTorch's layout of a layer and ours; rules that go both ways.

PyTorch: convolutions [out, in, h, w], transposed ones [in, out, h, w], dense layers [out, in],
pooled features flattened channel first. Ours: [h, w, in, out], [in, out], channel last.
Where numbers are folded (a norm into a scale and a bias), it is in float64, rounded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, ...]
BN_EPS = 1e-5  # of PyTorch's batch norms
BN = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Spec:
    """What a checkpoint is, as far as its tensors tell."""

    family: str  # NAME of the family's module
    preset: str  # key of `presets.PRESETS`
    num_classes: int | None  # without background; None: a bare backbone
    class_names: tuple[str, ...] | None = None
    category_ids: tuple[int, ...] | None = None  # in the data set that it learnt
    model: dict[str, Any] = field(default_factory=dict)  # `model` fields told by the tensors
    variant: str = ""  # which of the family's ways to name tensors
    optional: frozenset[str] = frozenset()  # tensors that not every file of the variant has
    warnings: tuple[str, ...] = ()  # what the tensors could not tell


@dataclass(frozen=True)
class Rule:
    """Some of their tensors make some of our variables.

    sources: their names. targets: our paths, as 'params/backbone/stem/conv/kernel'.
    forward: source arrays -> target arrays. backward: target arrays -> source arrays; its `like`
    are the source arrays as they were imported, or None. backward with `like` keeps what the
    targets do not hold (the statistics of a folded norm, the rows of the background).
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    forward: Callable[..., Arrays]
    backward: Callable[..., Arrays]


def single(source: str, target: str, there: Callable, back: Callable) -> Rule:
    """One tensor makes one variable, and nothing is lost."""
    return Rule(
        (source,),
        (target,),
        lambda x: (there(x),),
        lambda x, like=None: (np.ascontiguousarray(back(x)),),
    )


def copy(source: str, target: str) -> Rule:
    """The same in both layouts: biases, for example."""
    return single(source, target, float32, lambda x: x)


def conv(source: str, target: str) -> Rule:
    """Kernel of a convolution, grouped ones included."""
    return single(source, target, to_kernel, from_kernel)


def conv_bias(source: str, target: str) -> list[Rule]:
    """A convolution with a bias; both arguments are prefixes."""
    return [
        conv(f"{source}.weight", f"{target}/kernel"),
        copy(f"{source}.bias", f"{target}/bias"),
    ]


def deconv(source: str, target: str) -> list[Rule]:
    """The 2x2 transposed convolution of stride 2; both arguments are prefixes."""
    return [
        single(
            f"{source}.weight",
            f"{target}/kernel",
            lambda w: axes(float32(w), (2, 3, 0, 1)),
            lambda k: k.transpose(2, 3, 0, 1),
        ),
        copy(f"{source}.bias", f"{target}/bias"),
    ]


def dense(source: str, target: str) -> list[Rule]:
    """A dense layer; both arguments are prefixes."""
    return [
        single(
            f"{source}.weight",
            f"{target}/kernel",
            lambda w: axes(float32(w), (1, 0)),
            lambda k: k.T,
        ),
        copy(f"{source}.bias", f"{target}/bias"),
    ]


def dense_on_pooled(source: str, target: str, side: int = 7) -> list[Rule]:
    """The dense layer on flattened pooled features of `side` x `side` cells."""

    def there(w: np.ndarray) -> np.ndarray:
        w = float32(w).reshape(len(w), -1, side, side)
        return axes(w, (2, 3, 1, 0)).reshape(-1, len(w))

    def back(k: np.ndarray) -> np.ndarray:
        return k.reshape(side, side, -1, k.shape[-1]).transpose(3, 2, 0, 1).reshape(k.shape[-1], -1)

    return [
        single(f"{source}.weight", f"{target}/kernel", there, back),
        copy(f"{source}.bias", f"{target}/bias"),
    ]


def predictor(source: str, head: str) -> list[Rule]:
    """The 1x1 convolution of the mask logits; `head` is the path of the mask head."""
    return [
        single(
            f"{source}.weight",
            f"{head}/predictor_kernel",
            lambda w: axes(float32(w), (1, 0, 2, 3)).reshape(w.shape[1], w.shape[0]),
            lambda k: k.T[:, :, None, None],
        ),
        copy(f"{source}.bias", f"{head}/predictor_bias"),
    ]


def frozen_norm(sources: Sequence[str], target: str, eps: float) -> Rule:
    """A norm whose statistics stand still: (x - mean) / sqrt(var + eps) * weight + bias.

    sources: names of weight, bias, running mean, running variance. target: prefix of scale, bias.
    """

    def forward(weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray) -> Arrays:
        check_equal_shapes(weight, bias, mean, var)
        scale = float64(weight) / np.sqrt(float64(var) + eps)
        return float32(scale), float32(float64(bias) - float64(mean) * scale)

    def backward(scale: np.ndarray, bias: np.ndarray, like: Arrays | None = None) -> Arrays:
        mean, var = like[2:] if like else _neutral(scale, eps)
        weight = float64(scale) * np.sqrt(float64(var) + eps)
        return float32(weight), float32(float64(bias) + float64(mean) * float64(scale)), mean, var

    return Rule(tuple(sources), (f"{target}/scale", f"{target}/bias"), forward, backward)


def conv_with_norm(weight: str, norm: Sequence[str], target: str, eps: float) -> Rule:
    """A convolution and the norm behind it become one convolution with a bias.

    weight: name of the kernel. norm: names of weight, bias, running mean, running variance.
    target: prefix of kernel and bias.
    """
    affine = frozen_norm(norm, "", eps)

    def forward(kernel: np.ndarray, *norm: np.ndarray) -> Arrays:
        check_equal_shapes(kernel[:, 0, 0, 0], *norm)
        weight, bias, mean, var = (float64(x) for x in norm)
        scale = weight / np.sqrt(var + eps)
        folded = float64(to_kernel(kernel)) * scale
        return float32(folded), float32(bias - mean * scale)

    def backward(kernel: np.ndarray, bias: np.ndarray, like: Arrays | None = None) -> Arrays:
        if like is None:  # a neutral norm, which only brings the bias
            return from_kernel(kernel), *affine.backward(np.ones_like(bias), bias)
        weight, _, mean, var = (float64(x) for x in like[1:])
        # A channel that the norm had switched off gets a weight that lets it pass.
        weight = np.where(weight == 0, np.sqrt(var + eps), weight)
        scale = weight / np.sqrt(var + eps)
        return (
            from_kernel(float32(float64(kernel) / scale)),
            float32(weight),
            float32(float64(bias) + mean * scale),
            *like[3:],
        )

    return Rule((weight, *norm), (f"{target}/kernel", f"{target}/bias"), forward, backward)


def bn_names(prefix: str) -> tuple[str, ...]:
    """PyTorch's names of a batch norm's four tensors."""
    return tuple(f"{prefix}.{name}" for name in BN)


def float32(x: np.ndarray) -> np.ndarray:
    """Rounds to float32; wider and half floats alike."""
    return np.asarray(x, np.float32)


def float64(x: np.ndarray) -> np.ndarray:
    """Widens, for arithmetic."""
    return np.asarray(x, np.float64)


def axes(x: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Transposes into a contiguous array."""
    return np.ascontiguousarray(x.transpose(order))


def to_kernel(weight: np.ndarray) -> np.ndarray:
    """[out, in, h, w] to [h, w, in, out]."""
    return axes(float32(weight), (2, 3, 1, 0))


def from_kernel(kernel: np.ndarray) -> np.ndarray:
    """[h, w, in, out] to [out, in, h, w]."""
    return axes(kernel, (3, 2, 0, 1))


def check_equal_shapes(*arrays: np.ndarray) -> None:
    """Broadcasting would let a norm of one channel pass for all."""
    if len({x.shape for x in arrays}) > 1:
        raise ValueError("the tensors of a norm differ in shape")


def _neutral(scale: np.ndarray, eps: float) -> Arrays:
    """Mean and variance that leave a norm's weight and bias as they are: var + eps is 1."""
    return np.zeros_like(scale), np.full_like(scale, 1 - eps)
