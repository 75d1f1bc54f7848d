"""Table 8, in part: what do a longer schedule and training at many scales bring, and both?

The paper adds its enhancements on top of each other, and others between these, so that it has no
figure for an arm of ours.
"""

from experiments.table import Arm, Table, Times

LONGER = {"train.num_steps": Times(2)}
SCALES = {"data.short": Times((0.8, 0.84, 0.88, 0.92, 0.96, 1.0))}

TABLE = Table(
    base={"data.short": Times(1.0)},
    judged=("segm/AP", "bbox/AP"),
    arms=[
        Arm("baseline", {}),
        Arm("longer schedule", LONGER),
        Arm("many scales", SCALES),
        Arm("both", LONGER | SCALES),
    ],
)
