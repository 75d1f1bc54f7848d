"""Table 3: do boxes gain by training masks, too?"""

from experiments.table import Arm, Table, boxes
from experiments.trunks import R101

TABLE = Table(
    source="arXiv 1703.06870, table 3 (test-dev)",
    base=R101,
    against="Faster R-CNN",
    judged=("bbox/AP", "bbox/AP75"),
    arms=[
        Arm(
            "Faster R-CNN",
            {"model.mask_branch": "none", "train.best_metric": "bbox/AP"},
            boxes(37.3, 59.6, 40.3),
        ),
        Arm("Mask R-CNN", {"model.mask_branch": "fcn"}, boxes(38.2, 60.3, 41.7)),
    ],
)
