"""torchvision's Mask R-CNN with the same weights as ours, on the same random pictures.

Random weights behind frozen norms grow until boxes overflow, so the last norm of each residual
block is set to 0.2; and they give flat class distributions, so the score threshold is set where
about 1000 candidates enter the last NMS, as a trained model's on a busy photograph.
"""

from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_jax.weights import importer
from maskrcnn_jax.weights.readers import Source

CLASSES = 91  # with background
CANDIDATES = 1000


def require(threads: int) -> Any:
    """The module torch. Raises ImportError, which the caller reports as a skipped peer."""
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return torch


def model(height: int, width: int, device: str) -> Any:
    """Mask R-CNN R50-FPN with frozen norms, stem and res2 frozen, as it is fine-tuned."""
    import torch
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    # Its own resize does nothing at these sizes.
    sides = {"min_size": min(height, width), "max_size": max(height, width)}
    found = MaskRCNN(backbone, CLASSES, box_score_thresh=0.0, **sides)
    with torch.no_grad():
        for name, tensor in [*found.named_parameters(), *found.named_buffers()]:
            if name.endswith("bn3.weight"):
                tensor.fill_(0.2)
    return found.to(device)


def imported(peer: Any) -> importer.Imported:
    """The same weights in our layout."""
    tensors = {name: x.detach().cpu().numpy() for name, x in peer.state_dict().items()}
    # Its frozen norms have an eps of 1e-5, which the trained v1 family has, too.
    return importer.import_weights(Source(Path("torchvision.pth"), "pth", tensors, {}))


def set_threshold(peer: Any, images: list) -> float:
    """Sets the score that CANDIDATES scores of the first image exceed, and returns it."""
    import torch

    seen: list = []
    keep = lambda module, inputs, outputs: seen.append(outputs[0])  # noqa: E731
    hook = peer.roi_heads.box_predictor.register_forward_hook(keep)
    with torch.no_grad():
        peer.eval()(images)
    hook.remove()
    scores = seen[0].softmax(-1)[:, 1:].flatten()
    place = max(scores.numel() - CANDIDATES * len(images), 0)
    peer.roi_heads.score_thresh = float(scores.kthvalue(place + 1).values)
    return peer.roi_heads.score_thresh


def pictures(batch: int, height: int, width: int) -> np.ndarray:
    """uint8 [B, H, W, 3]: smooth noise, the same in every run."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (batch, -(-height // 8), -(-width // 8), 3), np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]


def tensors(images: np.ndarray, device: str) -> list:
    """What torchvision's models take: float [3, H, W] in 0..1 each."""
    import torch

    return [torch.from_numpy(x).permute(2, 0, 1).float().div(255).to(device) for x in images]


def synchronise(device: str) -> None:
    """Waits for the GPU."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
