"""What do more training pictures bring, at the same number of steps?"""

from experiments.table import Arm, Table, Times

TABLE = Table(
    against="all",
    judged=("segm/AP", "bbox/AP"),
    arms=[
        Arm("1/16", {"data.limit": Times(1 / 16)}),
        Arm("1/4", {"data.limit": Times(1 / 4)}),
        Arm("all", {}),
    ],
)
