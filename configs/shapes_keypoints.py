"""The embedded data set of generated shapes, with the corners of its polygons as keypoints.

    python main.py --config configs/shapes_keypoints.py --workdir runs/shapes_keypoints

Squares, triangles and stars have 3 to 5 of the 5 keypoints, the other classes none; a mirrored
picture swaps left and right.

Hardware: 2 CPU cores. AP: not measured yet.
"""

from configs import shapes


def get_config():
    """Returns the shapes config with a small keypoint head."""
    c = shapes.get_config()
    c.model.keypoints = 5
    c.model.keypoint_channels = 64
    c.model.keypoint_convs = 4
    c.train.best_metric = "keypoints/AP"
    return c
