"""What do larger pictures bring, trained and tested at one half, three quarters, the whole size?"""

from experiments.table import Arm, Table, Times

SIDES = ("data.short", "data.long", "data.short_test", "data.long_test")

TABLE = Table(
    base={"data.canvases": ()},
    against="1",
    judged=("segm/AP", "segm/APs", "bbox/AP"),
    arms=[
        Arm("1/2", dict.fromkeys(SIDES, Times(0.5))),
        Arm("3/4", dict.fromkeys(SIDES, Times(0.75))),
        Arm("1", dict.fromkeys(SIDES, Times(1.0))),
    ],
)
