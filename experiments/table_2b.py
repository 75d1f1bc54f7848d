"""Table 2b: should classes compete for a pixel (softmax), or each have its mask (sigmoid)?"""

from experiments.table import Arm, Table, masks
from experiments.trunks import C4

TABLE = Table(
    source="arXiv 1703.06870, table 2b",
    base=C4,
    against="sigmoid",
    arms=[
        Arm("softmax", {"model.mask_loss": "softmax"}, masks(24.8, 44.1, 25.1)),
        Arm("sigmoid", {"model.mask_loss": "sigmoid"}, masks(30.3, 51.2, 31.5)),
    ],
)
