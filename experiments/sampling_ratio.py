"""How many samples per bin and axis does RoIAlign need? "adaptive": as many as the roi is large."""

from experiments.table import Arm, Table

TABLE = Table(
    against="2",
    judged=("segm/AP", "segm/AP75"),
    arms=[
        Arm("1", {"model.roi_sampling_ratio": 1}),
        Arm("2", {"model.roi_sampling_ratio": 2}),
        Arm("4", {"model.roi_sampling_ratio": 4}),
        Arm("adaptive", {"model.roi_sampling_ratio": 0}),
    ],
)
