"""What do larger pictures bring, trained and tested at one half, three quarters, the whole size?"""

from experiments.table import Arm, Square, Table, Times


def sized(factor: float) -> dict:
    """The fields of pictures of that part of the size."""
    sides = ("data.short", "data.long", "data.short_test", "data.long_test")
    return dict.fromkeys(sides, Times(factor)) | {"data.canvases": Square(factor)}


TABLE = Table(
    against="1",
    judged=("segm/AP", "segm/APs", "bbox/AP"),
    arms=[
        Arm("1/2", sized(0.5)),
        Arm("3/4", sized(0.75)),
        Arm("1", sized(1.0)),
    ],
)
