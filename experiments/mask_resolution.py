"""How fine must a mask be: 14, 28 or 56 cells a side, from features pooled at half of it?"""

from experiments.table import Arm, Table

TABLE = Table(
    base={"data.mask_side": 112},
    against="28",
    judged=("segm/AP", "segm/AP75"),
    arms=[
        Arm("14", {"model.mask_pool_size": 7}),
        Arm("28", {"model.mask_pool_size": 14}),
        Arm("56", {"model.mask_pool_size": 28}),
    ],
)
