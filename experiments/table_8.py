"""Table 8, in part: what do a longer schedule and training at many scales bring, and both?

The paper adds its enhancements on top of each other, and others between these, so that it has no
figure for an arm of ours.
"""

from experiments.table import Arm, Table, Times

LONGER = {"train.num_steps": Times(2)}
SCALES = {"data.short": (640, 672, 704, 736, 768, 800)}

TABLE = Table(
    base={"data.short": (800,)},
    judged=("segm/AP", "bbox/AP"),
    arms=[
        Arm("baseline", {}),
        Arm("longer schedule", LONGER),
        Arm("many scales", SCALES),
        Arm("both", LONGER | SCALES),
    ],
)
