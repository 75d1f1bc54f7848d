"""Data sets by name, for configs: `register("mine", make)` and `data.name=mine`."""

from collections.abc import Callable
from typing import Any

from maskrcnn_jax.errors import UserError

BUILT_IN = ("coco", "coco_2017", "shapes")

_makers: dict[str, Callable[[str], Any]] = {}


def register(name: str, make: Callable[[str], Any]) -> None:
    """Gives a data set a name that `data.name` can take; a second call replaces the first.

    make: takes "train" or "val" and returns the `Dataset` of that split (or what its `to_coco`
      returns). It is called when a run begins, for "val" alone if the run only evaluates.
    Raises UserError for a name that is taken by the package.
    """
    if name in BUILT_IN:
        raise UserError(f"register: {name!r} is one of the package's own names; take another")
    _makers[name] = make


def registered() -> tuple[str, ...]:
    """The names that were registered."""
    return tuple(_makers)


def make(name: str, split: str) -> Any:
    """Returns what the maker of that name returns for "train" or "val"."""
    return _makers[name](split)
