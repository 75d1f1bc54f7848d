"""Whole models: inference and the training step, with torchvision's weights on both sides."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_peer
from benchmarks.timing import Case
from benchmarks.train_step import CLASSES, Fields, optim_fields, synthetic_batch
from maskrcnn_jax import conventions, runtime
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step
from maskrcnn_jax.weights.presets import PRESETS

# Tiny, for tests: it runs through all, and tells nothing about speed.
SMALL = {
    "depth": 18,
    "width": 8,
    "fpn_channels": 16,
    "rpn_channels": 16,
    "box_fc_dim": 32,
    "mask_channels": 16,
    "roi_batch_per_image": 16,
    "rpn_pre_nms_topk_train": 60,
    "rpn_pre_nms_topk_test": 60,
    "rpn_post_nms_topk_train": 40,
    "rpn_post_nms_topk_test": 40,
}


def inference(
    hw: tuple[int, int], batch: int, device: str, dtype: str, peers: set[str], small: bool
) -> Case:
    """Pictures in memory to boxes, scores and masks pasted into the picture, on the host."""
    images = torch_peer.pictures(batch, *hw)
    fields = PRESETS["torchvision_v1"]["model"] | {"dtype": dtype}
    works: dict[str, Callable] = {}
    if "torchvision" in peers and not small:
        works, variables, thresh = _torch_inference(hw, images, device, dtype)
        model = mask_rcnn.build(Fields(**fields | {"score_thresh": thresh}), torch_peer.CLASSES - 1)
    else:
        fields |= {"norm": "group", "score_thresh": 0.01} | (SMALL if small else {})
        model = mask_rcnn.build(Fields(**fields), CLASSES)
        variables = init_variables(model, 0)
    variables = jax.device_put(variables)
    image_hw = np.tile(np.int32(hw), (batch, 1))
    run = jax.jit(lambda v, i, h: mask_rcnn.forward_predict(model, v, i, h))
    paste = conventions.PASTE_RULES["torchvision"]

    def ours() -> list:
        found = jax.device_get(run(variables, images, image_hw))
        masks = []
        for b in range(batch):
            for i in np.flatnonzero(found.valid[b]):
                crop, top, left = paste.paste(found.masks[b, i], found.boxes[b, i], hw)
                whole = np.zeros(hw, bool)
                whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop > 0.5
                masks.append(whole)
        return masks

    name = f"inference, {batch} x {hw[0]}x{hw[1]}, {dtype}"
    return Case(name, ours, works, images=batch, note=f"{len(ours())} masks")


def _torch_inference(
    hw: tuple[int, int], images: np.ndarray, device: str, dtype: str
) -> tuple[dict[str, Callable], dict, float]:
    """Works, our variables of the same weights, the score threshold."""
    import torch

    peer = torch_peer.model(*hw, device)
    # Its masks come back as float images; who uses them thresholds them.
    inputs = torch_peer.tensors(images, device)
    thresh = torch_peer.set_threshold(peer, inputs)
    variables = torch_peer.imported(peer).variables
    last = torch_peer.model(*hw, device).to(memory_format=torch.channels_last)
    last.load_state_dict(peer.state_dict())
    last.roi_heads.score_thresh = thresh

    def works(model: torch.nn.Module) -> Callable:
        model.eval()
        on = {"device_type": device, "dtype": torch.bfloat16, "enabled": dtype == "bfloat16"}

        def run() -> list:
            with torch.no_grad(), torch.autocast(**on):
                return [(out["masks"] > 0.5).cpu().numpy() for out in model(inputs)]

        return run

    return {"torchvision": works(peer), "torchvision channels_last": works(last)}, variables, thresh


def training(
    hw: tuple[int, int], batch: int, device: str, dtype: str, peers: set[str], small: bool
) -> Iterator[Case]:
    """Forward, backward and SGD, 8 objects an image; norms, stem and res2 frozen."""
    rng = np.random.default_rng(0)
    data = synthetic_batch(rng, batch, *hw)
    fields = PRESETS["torchvision_v1"]["model"] | {"dtype": dtype}
    works: dict[str, Callable] = {}
    if "torchvision" in peers and not small:
        peer = torch_peer.model(*hw, device)
        variables = torch_peer.imported(peer).variables
        works = _torch_training(peer, data, device, dtype)
        classes = torch_peer.CLASSES - 1
    else:
        fields |= {"norm": "group", "freeze_at": 0} | (SMALL if small else {})
        variables, classes = None, CLASSES
    model = mask_rcnn.build(Fields(**fields), classes)
    variables = variables or init_variables(model, 0)
    variables = jax.tree.map(np.asarray, variables)
    optim = optim_fields()
    optim.base_lr = 1e-6
    tx, schedule, trained = make_optimizer(
        variables["params"], optim, fields["freeze_at"], 1000, batch
    )
    mesh = runtime.make_mesh()
    step = make_train_step(model, tx, schedule, trained, mesh)
    state = runtime.replicate(init_state(variables, tx, 0.0), mesh)
    placed = runtime.shard_batch(data, mesh)
    program = step.lower(state, placed).compile()

    def ours() -> float:
        nonlocal state
        state, metrics = program(state, placed)
        return float(jax.block_until_ready(metrics["loss"]))

    name = f"training step, {batch} x {hw[0]}x{hw[1]}, {dtype}"
    yield Case(name, ours, works, images=batch, note=f"loss {ours():.3f}")


def _torch_training(peer, data, device: str, dtype: str) -> dict[str, Callable]:
    import torch

    from maskrcnn_jax.ops.masks import unpack_bits

    inputs = torch_peer.tensors(np.asarray(data.images), device)
    height, width = data.images.shape[1:3]
    targets = []
    for b in range(len(inputs)):
        own = np.flatnonzero(data.gt_valid[b])
        bitmaps = np.asarray(unpack_bits(jnp.asarray(data.gt_masks[b, own])))
        masks = np.zeros((len(own), height, width), np.uint8)
        for i, (bitmap, box) in enumerate(zip(bitmaps, data.gt_boxes[b, own], strict=True)):
            crop, top, left = conventions.PASTE_RULES["detectron2"].paste(
                bitmap, box, (height, width)
            )
            masks[i, top : top + crop.shape[0], left : left + crop.shape[1]] = crop >= 0.5
        parts = {
            "boxes": data.gt_boxes[b, own],
            "labels": data.gt_classes[b, own].astype(np.int64) + 1,
            "masks": masks,
        }
        targets.append({k: torch.from_numpy(v).to(device) for k, v in parts.items()})

    def works(model: torch.nn.Module) -> Callable:
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)
        on = {"device_type": device, "dtype": torch.bfloat16, "enabled": dtype == "bfloat16"}

        def step() -> float:
            with torch.autocast(**on):
                total = sum(model(inputs, targets).values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            return float(total.detach())

        return step

    last = torch_peer.model(height, width, device).to(memory_format=torch.channels_last)
    last.load_state_dict(peer.state_dict())
    return {"torchvision": works(peer), "torchvision channels_last": works(last)}
