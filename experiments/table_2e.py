"""Table 2e: does a mask need convolutions, which keep its layout, or will dense layers do?"""

from experiments.table import Arm, Table, masks

MLP = {"model.mask_branch": "mlp", "model.mask_fc_dim": 1024}

TABLE = Table(
    source="arXiv 1703.06870, table 2e",
    against="FCN",
    arms=[
        Arm("MLP, 1024-1024", MLP | {"model.mask_fcs": 2}, masks(31.5, 53.7, 32.8)),
        Arm("MLP, 1024-1024-1024", MLP | {"model.mask_fcs": 3}, masks(31.5, 54.0, 32.6)),
        Arm("FCN", {"model.mask_branch": "fcn"}, masks(33.6, 55.2, 35.3)),
    ],
)
