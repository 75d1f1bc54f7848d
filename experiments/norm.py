"""Which norm trains a detector from scratch: none, batch norm over all devices, group norm?"""

from experiments.table import Arm, Table

TABLE = Table(
    base={"model.freeze_at": 0, "init.checkpoint": ""},
    against="batch",
    judged=("segm/AP", "bbox/AP"),
    arms=[
        Arm("none", {"model.norm": "frozen", "model.head_norm": "none"}),
        Arm("batch", {"model.norm": "batch", "model.head_norm": "batch"}),
        Arm("group", {"model.norm": "group", "model.head_norm": "group"}),
    ],
)
