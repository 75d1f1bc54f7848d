"""What a table's file says: named differences of the config, and the paper's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Times(NamedTuple):
    """A field's value in an arm: the setting's own value, or the command line's, times a factor.

    Of a tuple, its largest number times each factor: Times((0.5, 1.0)) of (640, 800) is (400, 800).
    Of data.limit, the number of training images that there are. Whole numbers stay above 0, but for
    the factor 0.
    of: another field, whose value is multiplied in place of the field's own.
    """

    factors: float | tuple[float, ...]
    of: str = ""


class Square(NamedTuple):
    """data.canvases in an arm: the one square that holds pictures of `factor` times the size.

    A batch is of one canvas, so that only with a single canvas arms of different sizes see the same
    pictures in the same order.
    """

    factor: float


@dataclass(frozen=True)
class Arm:
    """A row of a table.

    fields: config fields, "model.roi_pool", with their values as on COCO; a setting may put others
    in their place (`settings.Setting.instead`). paper: the paper's figures in percent, by metric,
    made by `masks`, `boxes` and `keypoints`.
    """

    name: str
    fields: Mapping[str, Any]
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A question to the model, as arms that differ in a few fields.

    base: fields that all arms share; the command line overrides these, but never an arm's.
    against: name of the arm that the others are compared with; the first by default.
    judged: metrics for whose differences the report says whether they exceed the noise; the kind of
    the first ("segm", "bbox", "keypoints") leads the report.
    source: where the paper's figures stand.
    """

    arms: Sequence[Arm]
    base: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""
    judged: Sequence[str] = ("segm/AP",)
    source: str = ""


def masks(*values: float) -> dict[str, float]:
    """The paper's mask AP, AP50, AP75, and by size, as many as there are."""
    return _figures("segm", values)


def boxes(*values: float) -> dict[str, float]:
    """The paper's box AP, AP50, AP75, and by size, as many as there are."""
    return _figures("bbox", values)


def keypoints(*values: float) -> dict[str, float]:
    """The paper's keypoint AP, AP50, AP75."""
    return _figures("keypoints", values[:3])


def _figures(kind: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in zip(METRICS, values, strict=False)}
