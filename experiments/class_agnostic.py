"""Section 4.2: must the mask branch know the class, or is the box's class enough?"""

from experiments.table import Arm, Table, masks
from experiments.trunks import C4

TABLE = Table(
    source="arXiv 1703.06870, section 4.2",
    base=C4,
    against="class-specific",
    arms=[
        Arm("class-agnostic", {"model.class_agnostic_masks": True}, masks(29.7)),
        Arm("class-specific", {"model.class_agnostic_masks": False}, masks(30.3)),
    ],
)
