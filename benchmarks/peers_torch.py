"""torchvision's Mask R-CNN with the same weights as ours, on the same random pictures.

Its weights are those of all sides, and its score threshold, too.

Random weights behind frozen norms grow until boxes overflow, so the last norm of each residual
block is set to 0.2; and they give flat class distributions, so the score threshold is set where
about 1000 candidates enter the last NMS, as a trained model's on a busy photograph.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from benchmarks.timing import Setting

CLASSES = 91  # with background
CANDIDATES = 1000


def require(name: str, threads: int) -> None:
    """Imports a peer. Raises ImportError, which the caller reports as a skipped peer."""
    if name == "detectron2":
        # All that its cases take: the bare package would let half an installation pass.
        import detectron2.model_zoo  # noqa: F401

        import maskrcnn_jax.weights.exporter  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(threads)
    torch.manual_seed(0)


def model(hw: tuple[int, int], device: str) -> Any:
    """Mask R-CNN R50-FPN with frozen norms, stem and res2 frozen, as it is fine-tuned."""
    import torch
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=partial(FrozenBatchNorm2d, eps=0.0),  # as in the released weights
        trainable_layers=3,
    )
    # Its own resize does nothing at these sizes.
    found = MaskRCNN(backbone, CLASSES, box_score_thresh=0.0, min_size=min(hw), max_size=max(hw))
    with torch.no_grad():
        for name, tensor in [*found.named_parameters(), *found.named_buffers()]:
            if name.endswith("bn3.weight"):
                tensor.fill_(0.2)
    return found.to(device)


def variants(setting: Setting, peer: Any, hw: tuple[int, int]) -> dict[str, Any]:
    """Models of the same weights, as their users run them: both layouts, and compiled if asked."""
    import torch

    last = model(hw, setting.device).to(memory_format=torch.channels_last)
    last.load_state_dict(peer.state_dict())
    last.roi_heads.score_thresh = peer.roi_heads.score_thresh
    found = {"torchvision": peer, "torchvision channels_last": last}
    if setting.torch_compile:
        compiled = model(hw, setting.device).to(memory_format=torch.channels_last)
        compiled.load_state_dict(peer.state_dict())
        compiled.roi_heads.score_thresh = peer.roi_heads.score_thresh
        # The rest of it has shapes that depend on the data.
        compiled.backbone = torch.compile(compiled.backbone)
        found["torchvision compiled backbone"] = compiled
    return found


def variables(peer: Any) -> dict[str, Any]:
    """The same weights in our layout: the rules of the importer, which itself needs configs."""
    from maskrcnn_jax.weights import torchvision

    tensors = {name: x.detach().cpu().numpy() for name, x in peer.state_dict().items()}
    flat = {}
    for rule in torchvision.rules(torchvision.describe(tensors)):
        made = rule.forward(*(tensors[name] for name in rule.sources))
        flat |= dict(zip(rule.targets, made, strict=True))
    return unflatten_dict(flat, sep="/")


def autocast(setting: Setting) -> Any:
    """The peers' mixed precision, where ours computes in bfloat16."""
    import torch

    return torch.autocast(
        device_type=setting.device, dtype=torch.bfloat16, enabled=setting.dtype == "bfloat16"
    )


def set_threshold(setting: Setting, peer: Any, images: list) -> float:
    """Sets the score that CANDIDATES scores of an image exceed on average, and returns it."""
    import torch

    def run() -> None:
        with torch.no_grad(), autocast(setting):
            peer.eval()(images)

    found = threshold(peer.roi_heads.box_predictor, run, slice(1, None), len(images))
    peer.roi_heads.score_thresh = found
    return found


def threshold(predictor: Any, run: Callable, foreground: slice, images: int) -> float:
    """The score that CANDIDATES scores an image exceed, as `run` makes them in `predictor`."""
    seen: list = []
    keep = lambda module, inputs, outputs: seen.append(outputs[0])  # noqa: E731
    hook = predictor.register_forward_hook(keep)
    run()
    hook.remove()
    scores = seen[0].float().softmax(-1)[:, foreground].flatten()
    place = max(scores.numel() - CANDIDATES * images, 0)
    return float(scores.detach().cpu().kthvalue(place + 1).values)


def pictures(batch: int, hw: tuple[int, int]) -> np.ndarray:
    """uint8 [B, H, W, 3]: smooth noise, the same in every run."""
    height, width = hw
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (batch, -(-height // 8), -(-width // 8), 3), np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]


def tensors(images: np.ndarray, device: str) -> list:
    """What torchvision's models take: float [3, H, W] in 0..1 each."""
    import torch

    return [torch.from_numpy(x).permute(2, 0, 1).float().div(255).to(device) for x in images]


def waiting(work: Callable, device: str) -> Callable[[], Any]:
    """The same work, which then waits for the GPU."""
    import torch

    def run() -> Any:
        found = work()
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    return run
