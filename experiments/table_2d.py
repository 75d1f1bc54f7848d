"""Table 2d: what does RoIAlign bring over RoIPool where a cell is large, on C5 of stride 32?"""

from experiments.table import Arm, Table, boxes, masks
from experiments.trunks import C5

TABLE = Table(
    source="arXiv 1703.06870, table 2d",
    base=C5,
    against="RoIAlign",
    judged=("segm/AP", "segm/AP75", "bbox/AP"),
    arms=[
        Arm(
            "RoIPool",
            {"model.roi_pool": "pool"},
            masks(23.6, 46.5, 21.6) | boxes(28.2, 52.7, 26.9),
        ),
        Arm(
            "RoIAlign",
            {"model.roi_pool": "align"},
            masks(30.9, 51.8, 32.1) | boxes(34.0, 55.3, 36.4),
        ),
    ],
)
