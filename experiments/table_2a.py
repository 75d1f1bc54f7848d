"""Table 2a: what do deeper backbones and the feature pyramid bring?"""

from experiments.table import Arm, Table, masks
from experiments.trunks import C4, R101, X101

TABLE = Table(
    source="arXiv 1703.06870, table 2a",
    base={"model.depth": 50},
    against="R50-FPN",
    arms=[
        Arm("R50-C4", C4, masks(30.3, 51.2, 31.5)),
        Arm("R101-C4", C4 | R101, masks(32.7, 54.2, 34.3)),
        Arm("R50-FPN", {}, masks(33.6, 55.2, 35.3)),
        Arm("R101-FPN", R101, masks(35.4, 57.3, 37.5)),
        Arm("X101-FPN", X101, masks(36.7, 59.5, 38.9)),
    ],
)
