"""On which canvas a picture goes, so that a folder of all sizes compiles only a few programs."""

from collections.abc import Callable

from maskrcnn_jax import conventions, preprocess
from maskrcnn_jax.errors import UserError

HW = tuple[int, int]
MODES = ("exact", "bucketed")


class CanvasPlan:
    """Chooses canvases, one after another; never more than `limit` different ones.

    In the mode "exact" a picture gets the canvas that its peer gives it, and the same numbers come
    out. Once these and the buckets, a few canvases that hold all sizes, are `limit`, a picture of a
    new size goes to the least of them that holds it. There, anchors beyond the peer's canvas are
    masked; features near the border of the picture differ a little, for the further padding.
    """

    def __init__(
        self, mode: str, limit: int, rule: str, short: int, long: int, say: Callable[[str], None]
    ):
        """mode: of MODES. rule, short, long: as of `conventions.place`."""
        if mode not in MODES:
            raise UserError(f"canvases={mode!r}: give one of {', '.join(MODES)}")
        if limit < 1:
            raise UserError(f"max_programs={limit}: give 1 or more")
        self._say, self._limit = say, limit
        self._buckets = preprocess.derive_canvases(short, long)
        if len(self._buckets) > limit:
            sides = [max(sides) for sides in zip(*self._buckets, strict=True)]
            self._buckets = ((sides[0], sides[1]),)
        self._exact: set[HW] = set()
        self._adds = mode == "exact"

    def choose(self, placement: conventions.Placement) -> HW:
        """The canvas for a picture that is to lie so."""
        canvas = placement.canvas
        if placement.fixed:
            return canvas
        if self._adds and canvas not in self._exact:
            if len({*self._exact, *self._buckets, canvas}) <= self._limit:
                self._exact.add(canvas)
            else:
                self._adds = False
                self._say(
                    f"pictures of many sizes: {len(self._exact)} canvases fit exactly; from now on "
                    f"pictures of other sizes share {len({*self._exact, *self._buckets})} canvases "
                    f"(max_programs {self._limit}), which changes features near the border a little"
                )
        if canvas in self._exact:
            return canvas
        return preprocess.choose_canvas(placement.image_hw, [*self._exact, *self._buckets])
