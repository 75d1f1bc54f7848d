"""Table 8, in part: what do a longer schedule, many scales in training and at test time bring?

The paper adds its enhancements on top of each other, and others between these, so that it has no
figure for an arm of ours.
"""

from experiments.table import Arm, Table, Times

LONGER = {"train.num_steps": Times(2)}
SCALES = {"data.short": Times((0.8, 0.84, 0.88, 0.92, 0.96, 1.0))}
# 400, 500, ..., 1200 where the usual size is 800.
TEST_TIME = {
    "eval.tta_short": Times(tuple(side / 800 for side in range(400, 1201, 100)), "data.short_test"),
    "eval.tta_long": Times(1.5, "data.long_test"),
    "eval.tta_flip": True,
}

TABLE = Table(
    base={"data.short": Times(1.0)},
    judged=("segm/AP", "bbox/AP"),
    arms=[
        Arm("baseline", {}),
        Arm("longer schedule", LONGER),
        Arm("many scales", SCALES),
        Arm("both", LONGER | SCALES),
        Arm("both, and at test time", LONGER | SCALES | TEST_TIME),
    ],
)
