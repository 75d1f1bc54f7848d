"""What the fields of test-time augmentation have to satisfy, in the group `eval`."""

from collections.abc import Iterator
from typing import Any

Fields = dict[str, Any]


def check(fields: Fields) -> Iterator[str]:
    """Yields one message per mistake; see `config_rules.check`."""
    short, long = fields["eval.tta_short"], fields["eval.tta_long"]
    if not short:
        if fields["eval.tta_flip"]:
            usual = fields["data.short_test"]
            yield (
                "eval.tta_flip=True does nothing while eval.tta_short is empty; set "
                f"eval.tta_short={usual}, the usual size, or others"
            )
        return
    if any(not isinstance(side, int) for side in short):
        yield f"eval.tta_short={short!r} must be whole numbers of pixels, as in (400,600,800)"
        return
    if len(set(short)) < len(short):
        yield f"eval.tta_short={short!r} names a size twice, which would count twice; name it once"
    if max(short) > long:
        yield f"eval.tta_short={short!r} exceeds eval.tta_long={long}; raise eval.tta_long"
    if fields["model.keypoints"]:
        yield no_keypoints(fields["model.keypoints"])
    if fields["data.resize_rule"] == "matterport" and long % 32:
        yield (
            f"eval.tta_long={long}: data.resize_rule='matterport' makes it the side of the canvas; "
            f"set a multiple of 32, as {long - long % 32 + 32}"
        )


def no_keypoints(number: int) -> str:
    """The message where a model of so many keypoints is to be augmented."""
    return (
        f"eval.tta_short augments boxes and masks, not the model.keypoints={number}; leave "
        "eval.tta_short empty"
    )
