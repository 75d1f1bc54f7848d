"""Table 5: what do boxes, masks and keypoints of persons gain or lose by one another?"""

from experiments.table import Arm, Table, Times, boxes, keypoints, masks
from experiments.trunks import KEYPOINTS

# data.min_keypoints stays, so that all arms see the same pictures, whatever their heads.
_NO_MASKS = {"model.mask_branch": "none", "train.best_metric": "bbox/AP"}
_NO_KEYPOINTS = {"model.keypoints": Times(0)}

TABLE = Table(
    source="arXiv 1703.06870, table 5 (R50-FPN, persons)",
    base=KEYPOINTS,
    against="boxes, masks, keypoints",
    judged=("keypoints/AP", "segm/AP", "bbox/AP"),
    arms=[
        Arm("boxes", _NO_MASKS | _NO_KEYPOINTS, boxes(52.5)),
        Arm("boxes, masks", _NO_KEYPOINTS, boxes(53.6) | masks(45.8)),
        Arm("boxes, keypoints", _NO_MASKS, boxes(50.7) | keypoints(64.2)),
        Arm("boxes, masks, keypoints", {}, boxes(52.0) | masks(45.1) | keypoints(64.7)),
    ],
)
