"""Inference of Mask R-CNN R50-FPN: pictures in memory to boxes, scores and masks.

Two cases a batch: the network alone, whose masks stay in the frames of their boxes, and all, whose
masks are pasted into the picture and come to the host.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import peers_detectron2, peers_torch
from benchmarks.timing import Case, Setting, Skipped, Work
from benchmarks.train_step import CLASSES, SMALL, Fields
from maskrcnn_jax import runtime
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.train_step import init_variables
from maskrcnn_jax.types import Detections
from maskrcnn_jax.weights.presets import PRESETS


def cases(setting: Setting) -> Iterator[Case | Skipped]:
    """Both cases of each batch size."""
    hw = (64, 96) if setting.small else setting.hw
    for batch in setting.batches:
        yield from _cases(setting, hw, batch)


def program(
    setting: Setting, batch: int, peer: Any = None, thresh: float = 0.01
) -> tuple[Callable, tuple]:
    """The compiled prediction, and its arguments: variables, pictures, sizes.

    peer: torchvision's model, whose weights it takes; None: random ones.
    """
    hw = (64, 96) if setting.small else setting.hw
    fields = PRESETS["torchvision_v1"]["model"] | {"dtype": setting.dtype, "score_thresh": thresh}
    if peer is None:
        fields |= SMALL if setting.small else {}
        model = mask_rcnn.build(Fields(**fields), CLASSES)
        variables = init_variables(model, 0)
    else:
        model = mask_rcnn.build(Fields(**fields), peers_torch.CLASSES - 1)
        variables = peers_torch.variables(peer)
    sizes = np.tile(np.int32(hw), (batch, 1))
    args = jax.device_put((variables, peers_torch.pictures(batch, hw), sizes))
    step = jax.jit(lambda v, images, hw: mask_rcnn.forward_predict(model, v, images, hw))
    return step.lower(*args).compile(runtime.compiler_options()), args


def _cases(setting: Setting, hw: tuple[int, int], batch: int) -> Iterator[Case | Skipped]:
    peer, network, pasted, thresh = None, {}, {}, 0.01
    # R50 is no small peer.
    if setting.peers and not setting.small:
        images = peers_torch.pictures(batch, hw)
        peer = peers_torch.model(hw, setting.device)
        inputs = peers_torch.tensors(images, setting.device)
        thresh = peers_torch.set_threshold(setting, peer, inputs)
        network, pasted = _peer_works(setting, peer, images, inputs)
    run, args = program(setting, batch, peer, thresh)
    name = f"inference, {batch} x {hw[0]}x{hw[1]}, {setting.dtype}"
    ours = lambda: jax.block_until_ready(run(*args))  # noqa: E731
    counts = {"ours": int(ours().valid.sum())}
    counts |= {key: sum(map(len, work())) for key, work in network.items()}
    note = "objects: " + ", ".join(f"{key} {count}" for key, count in counts.items())
    yield Case(f"{name}, network alone", ours, network, images=batch, note=note)
    try:
        from maskrcnn_jax import conventions
    except ImportError as error:
        yield Skipped(f"{name}, with pasted masks", str(error))
        return
    paste = conventions.PASTE_RULES["torchvision"].paste
    ours = lambda: _paste_all(jax.device_get(run(*args)), hw, paste)  # noqa: E731
    yield Case(f"{name}, with pasted masks", ours, pasted, images=batch)


def _peer_works(
    setting: Setting, peer: Any, images: np.ndarray, inputs: list
) -> tuple[dict[str, Work], dict[str, Work]]:
    """The network alone and all, of each peer; they return the masks of each picture."""
    network, pasted = {}, {}
    if setting.has("torchvision"):
        for name, model in peers_torch.variants(setting, peer, images.shape[1:3]).items():
            network[name] = torch_network(setting, model, inputs)
            pasted[name] = _pasted(setting, model, inputs)
    if setting.has("detectron2"):
        model = peers_detectron2.model(peer, setting.device)
        inputs = peers_detectron2.inputs(images, setting.device)
        network["detectron2"] = peers_detectron2.network(setting, model, inputs)
        pasted["detectron2"] = peers_detectron2.pasted(setting, model, inputs)
    return network, pasted


def _paste_all(found: Detections, hw: tuple[int, int], paste: Callable) -> list[np.ndarray]:
    masks = []
    for b, i in np.argwhere(found.valid):
        crop, top, left = paste(found.masks[b, i], found.boxes[b, i], hw)
        whole = np.zeros(hw, bool)
        whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop > 0.5
        masks.append(whole)
    return masks


def peer_network(setting: Setting, side: str) -> Work:
    """The network alone of one peer, which is all that stays in memory."""
    hw, images = setting.hw, peers_torch.pictures(setting.batches[0], setting.hw)
    if side == "detectron2":
        peer = peers_detectron2.model(peers_torch.model(hw, "cpu"), setting.device)
        inputs = peers_detectron2.inputs(images, setting.device)
        peers_detectron2.set_threshold(setting, peer, inputs)
        return peers_detectron2.network(setting, peer, inputs)
    peer = peers_torch.model(hw, setting.device)
    inputs = peers_torch.tensors(images, setting.device)
    peers_torch.set_threshold(setting, peer, inputs)
    return torch_network(setting, peer, inputs)


def _pasted(setting: Setting, model: Any, inputs: list) -> Callable:
    import torch

    def run() -> list:
        # Its masks are float images; who uses them thresholds them.
        with torch.no_grad(), peers_torch.autocast(setting):
            return [(out["masks"] > 0.5).cpu().numpy() for out in model.eval()(inputs)]

    return run


def torch_network(setting: Setting, model: Any, inputs: list) -> Callable:
    """torchvision's model up to the masks in the frames of their boxes, which it returns."""
    import torch

    paste = model.transform.postprocess

    def run() -> list:
        model.transform.postprocess = lambda found, *sizes: found
        try:
            with torch.no_grad(), peers_torch.autocast(setting):
                return [found["masks"] for found in model.eval()(inputs)]
        finally:
            model.transform.postprocess = paste

    return peers_torch.waiting(run, setting.device)
