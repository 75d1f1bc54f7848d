"""On which canvas a picture goes, so that a folder of all sizes compiles only a few programs."""

from collections.abc import Callable

from maskrcnn_jax import conventions, preprocess
from maskrcnn_jax.errors import UserError

HW = tuple[int, int]
MODES = ("exact", "bucketed")


class CanvasPlan:
    """Chooses canvases, one after another; never more than `limit` different ones.

    In the mode "exact" a picture gets the canvas that its peer gives it, and the same numbers come
    out. What comes after `limit` less the number of buckets goes to the least known canvas or
    bucket that holds it. There, anchors beyond the peer's canvas are masked; the features near the
    border of the picture differ a little, as what lies beyond them is further padding.
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
        self._room = limit - len(self._buckets) if mode == "exact" else 0
        self._exact: set[HW] = set()
        self._tells = mode == "exact"

    def choose(self, placement: conventions.Placement) -> HW:
        """The canvas for a picture that is to lie so."""
        canvas = placement.canvas
        if canvas not in self._exact and len(self._exact) < self._room:
            self._exact.add(canvas)
        if canvas in self._exact:
            return canvas
        if self._tells:
            self._tells = False
            self._say(
                f"pictures of many sizes: {len(self._exact)} canvases fit exactly; from now on "
                f"other sizes are padded to one of these or of {len(self._buckets)} larger ones "
                f"(at most {self._limit} programs), which changes features near the border a little"
            )
        return preprocess.choose_canvas(placement.image_hw, [*self._exact, *self._buckets])
