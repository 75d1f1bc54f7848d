"""Table 2c: what does RoIAlign bring over RoIPool and RoIWarp, on features of stride 16?"""

from experiments.table import Arm, Table, masks
from experiments.trunks import C4

TABLE = Table(
    source="arXiv 1703.06870, table 2c",
    base=C4 | {"model.roi_sampling_ratio": 2},
    against="RoIAlign, average",
    judged=("segm/AP", "segm/AP75"),
    arms=[
        Arm("RoIPool, max", {"model.roi_pool": "pool"}, masks(26.9, 48.8, 26.4)),
        Arm("RoIWarp, max", {"model.roi_pool": "warp_max"}, masks(27.2, 49.2, 27.1)),
        Arm("RoIWarp, average", {"model.roi_pool": "warp"}, masks(27.1, 48.9, 27.1)),
        Arm("RoIAlign, max", {"model.roi_pool": "align_max"}, masks(30.2, 51.0, 31.8)),
        Arm("RoIAlign, average", {"model.roi_pool": "align"}, masks(30.3, 51.2, 31.5)),
    ],
)
