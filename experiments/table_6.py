"""Table 6: what does RoIAlign bring to keypoints?"""

from experiments.table import Arm, Table, keypoints
from experiments.trunks import KEYPOINTS

TABLE = Table(
    source="arXiv 1703.06870, table 6 (R50-FPN, keypoints alone)",
    base=KEYPOINTS | {"model.mask_branch": "none", "train.best_metric": "keypoints/AP"},
    against="RoIAlign",
    judged=("keypoints/AP", "keypoints/AP75"),
    arms=[
        Arm("RoIPool", {"model.roi_pool": "pool"}, keypoints(59.8, 86.2, 66.7)),
        Arm("RoIAlign", {"model.roi_pool": "align"}, keypoints(64.2, 86.6, 69.7)),
    ],
)
