"""Table 2a: what do deeper backbones and the feature pyramid bring?"""

from experiments.table import Arm, Table, masks

R101 = {"model.depth": 101, "init.checkpoint": "detectron2/R-101"}
X101 = {
    "model.depth": 101,
    "model.groups": 32,
    "model.width_per_group": 8,
    "model.stride_in_1x1": False,
    "model.pixel_std": (57.375, 57.12, 58.395),
    "init.checkpoint": "detectron2/X-101-32x8d",
}
C4 = {"model.neck": "c4"}

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
