"""Makes roi_pool.npz: python make_roi_pool.py, with torch and torchvision installed.

Maps are NCHW and of whole numbers, so that bins have several largest cells; boxes reach out of the
map, lie on half cells, or have no area.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision


def main():
    """Writes the archive beside this file."""
    rng = np.random.default_rng(0)
    arrays = {}
    for case, scale, size in (("quarter", 0.25, 7), ("sixteenth", 1 / 16, 3)):
        features = rng.integers(0, 9, (2, 3, 13, 17)).astype(np.float32)
        corner = rng.uniform(-6, 14, (24, 2))
        cells = np.concatenate([corner, corner + rng.uniform(-1, 9, (24, 2))], -1)
        cells[::3] = np.round(2 * cells[::3]) / 2
        cells[-1] = -9, -9, -5, -5
        rois = np.concatenate([rng.integers(0, 2, (24, 1)), cells / scale], -1).astype(np.float32)
        x = torch.tensor(features, requires_grad=True)
        pooled = torchvision.ops.roi_pool(x, torch.tensor(rois), size, scale)
        cotangent = rng.integers(-9, 10, pooled.shape).astype(np.float32)
        (pooled * torch.tensor(cotangent)).sum().backward()
        found = {
            "features": features,
            "rois": rois,
            "spatial_scale": np.float32(scale),
            "cotangent": cotangent,
            "torchvision_pooled": pooled.detach().numpy(),
            "torchvision_grad_features": x.grad.numpy(),
        }
        arrays |= {f"{case}/{name}": value for name, value in found.items()}
    np.savez_compressed(Path(__file__).parent / "roi_pool.npz", **arrays)


if __name__ == "__main__":
    main()
