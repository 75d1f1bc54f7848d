"""What the values of the config's group `data` have to satisfy: augmentation and own data."""

from collections.abc import Iterator
from typing import Any

from maskrcnn_jax.data import registry

Fields = dict[str, Any]

_BEST_JPEG = 100


def check(fields: Fields) -> Iterator[str]:
    """Yields one message per mistake; see `config_rules.check`."""
    yield from _name(fields)
    yield from _ranges(fields)
    yield from _turned_canvases(fields)


def _name(fields: Fields) -> Iterator[str]:
    name, module = fields["data.name"], fields["data.module"]
    if module and name in registry.BUILT_IN:
        yield (
            f"data.module={module!r} is set, but data.name={name!r} is the package's own; set "
            "data.name to the name that the module registers"
        )
    elif not module and name not in (*registry.BUILT_IN, *registry.registered()):
        yield (
            f"data.name={name!r} is unknown; choose one of {registry.BUILT_IN}, or set data.module "
            "to the module that registers it"
        )


def _ranges(fields: Fields) -> Iterator[str]:
    for field in ("data.crop_range", "data.blur_sigma", "data.jpeg_quality"):
        low, high = fields[field]
        if low > high:
            yield f"{field}={fields[field]!r} must rise: (smallest, largest)"
    if not fields["data.crop_range"][0]:
        yield "data.crop_range begins with 0, a window without pixels; begin with 0.3 or so"
    if fields["data.jpeg_quality"][1] > _BEST_JPEG:
        yield f"data.jpeg_quality={fields['data.jpeg_quality']!r} exceeds 100, the best quality"


def _turned_canvases(fields: Fields) -> Iterator[str]:
    canvases = fields["data.canvases"]
    if not fields["data.rotate90"] or fields["data.lsj_scale"]:
        return
    for height, width in canvases:
        if (width, height) not in canvases:
            yield (
                f"data.rotate90 turns the canvas ({height},{width}) of data.canvases; add "
                f"({width},{height}), or leave data.canvases empty"
            )
