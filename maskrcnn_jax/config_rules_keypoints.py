"""What the fields of keypoints have to satisfy, in the groups model, data, eval and train."""

from collections.abc import Iterator
from typing import Any

Fields = dict[str, Any]


def check(fields: Fields) -> Iterator[str]:
    """Yields one message per mistake; see `config_rules.check`."""
    number, best = fields["model.keypoints"], fields["train.best_metric"]
    # Keypoints that only choose pictures are as many as the data have.
    if number or not fields["data.min_keypoints"]:
        yield from _pairs(fields["data.keypoint_flip"], number)
        yield from _sigmas(fields["eval.keypoint_sigmas"], number)
    if number and fields["model.neck"] == "c4":
        yield (
            f"model.keypoints={number} with model.neck='c4': the keypoint head wants features that "
            "res5 has not halved; set model.neck to another"
        )
    if number and fields["data.albumentations"]:
        yield (
            f"data.albumentations would not move the model.keypoints={number}; leave it empty, or "
            "set model.keypoints=0"
        )
    if best.startswith("keypoints/") and not number:
        yield f"train.best_metric={best!r} is not measured, as model.keypoints=0; set another"


def _sigmas(sigmas: tuple, number: int) -> Iterator[str]:
    if sigmas and len(sigmas) != number:
        yield (
            f"eval.keypoint_sigmas={sigmas!r} has {len(sigmas)} values; give one for each of the "
            f"model.keypoints={number}, or ()"
        )


def _pairs(pairs: tuple, number: int) -> Iterator[str]:
    if any(not isinstance(pair, tuple) or len(pair) != 2 for pair in pairs) or any(
        not isinstance(place, int) for pair in pairs for place in pair
    ):
        yield f"data.keypoint_flip={pairs!r} must be pairs of places, as in ((1,2),(3,4))"
        return
    places = [place for pair in pairs for place in set(pair)]
    if places and max(places) >= number:
        yield (
            f"data.keypoint_flip={pairs!r} names a keypoint that is not among the "
            f"model.keypoints={number}, which are counted from 0"
        )
    if len(set(places)) != len(places):
        yield f"data.keypoint_flip={pairs!r} names a keypoint in two pairs; it has one partner"
