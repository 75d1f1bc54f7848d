"""The training step: forward, backward and SGD, 8 objects an image; norms, stem, res2 frozen."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import peers_detectron2, peers_torch
from benchmarks.timing import Case, Setting, Work
from benchmarks.train_step import CLASSES, SMALL, Fields, optim_fields, synthetic_batch
from maskrcnn_jax import runtime
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step
from maskrcnn_jax.types import Batch
from maskrcnn_jax.weights.presets import PRESETS

_RATE = 1e-6  # random weights learn nothing; they are to stay as they are


def cases(setting: Setting) -> Iterator[Case]:
    """One case: the step on the same pictures and objects."""
    data = _batch(setting)
    peer, works = None, {}
    # R50 is no small peer.
    if setting.peers and not setting.small:
        peer = peers_torch.model(data.images.shape[1:3], setting.device)
        works = _peer_works(setting, peer, data)
    run, (state, placed) = program(setting, peer, data)

    def ours() -> float:
        nonlocal state
        state, metrics = run(state, placed)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    batch, height, width, _ = data.images.shape
    name = f"training step, {batch} x {height}x{width}, {setting.dtype}"
    losses = {"ours": ours(), **{key: work() for key, work in works.items()}}
    note = "first losses: " + ", ".join(f"{key} {loss:.3f}" for key, loss in losses.items())
    yield Case(name, ours, works, images=batch, note=note)


def program(
    setting: Setting, peer: Any = None, data: Batch | None = None
) -> tuple[Callable, tuple]:
    """The compiled step, and its arguments: state and batch. The state is donated.

    peer: torchvision's model, whose weights it takes; None: random ones.
    """
    data = _batch(setting) if data is None else data
    fields = PRESETS["torchvision_v1"]["model"] | {"dtype": setting.dtype}
    if peer is None:
        fields |= SMALL if setting.small else {}
        model = mask_rcnn.build(Fields(**fields), CLASSES)
        variables = init_variables(model, 0)
    else:
        model = mask_rcnn.build(Fields(**fields), peers_torch.CLASSES - 1)
        variables = peers_torch.variables(peer)
    variables = jax.tree.map(np.asarray, variables)
    optim = optim_fields()
    optim.base_lr = _RATE
    tx, schedule, trained = make_optimizer(
        variables["params"], optim, fields["freeze_at"], 1000, len(data.images)
    )
    mesh = runtime.make_mesh()
    step = make_train_step(model, tx, schedule, trained, mesh)
    state = runtime.replicate(init_state(variables, tx, 0.0), mesh)
    args = (state, runtime.shard_batch(data, mesh))
    return step.lower(*args).compile(runtime.compiler_options()), args


def peer_step(setting: Setting, side: str) -> Work:
    """The step of one peer, which is all that stays in memory."""
    data = _batch(setting)
    if side == "detectron2":
        return _detectron2_step(setting, peers_torch.model(data.images.shape[1:3], "cpu"), data)
    peer = peers_torch.model(data.images.shape[1:3], setting.device)
    return _torch_steps(setting, {side: peer}, data)[side]


def _peer_works(setting: Setting, peer: Any, data: Batch) -> dict[str, Work]:
    works = {}
    if setting.has("torchvision"):
        models = peers_torch.variants(setting, peer, data.images.shape[1:3])
        works = _torch_steps(setting, models, data)
    if setting.has("detectron2"):
        works["detectron2"] = _detectron2_step(setting, peer, data)
    return works


def _torch_steps(setting: Setting, models: dict[str, Any], data: Batch) -> dict[str, Work]:
    inputs = peers_torch.tensors(np.asarray(data.images), setting.device)
    targets = _targets(data, setting.device)
    return {
        name: _step(setting, model, lambda model=model: model(inputs, targets))
        for name, model in models.items()
    }


def _detectron2_step(setting: Setting, reference: Any, data: Batch) -> Work:
    model = peers_detectron2.model(reference, setting.device)
    targets = _targets(data, setting.device)
    inputs = peers_detectron2.inputs(np.asarray(data.images), setting.device, targets)
    return _step(setting, model, peers_detectron2.losses(model, inputs))


def _batch(setting: Setting) -> Batch:
    hw, batch = setting.train_hw, setting.train_batch
    if setting.small:
        hw, batch = (64, 64), jax.device_count()
    return synthetic_batch(np.random.default_rng(0), batch, *hw)


def _targets(data: Batch, device: str) -> list[dict]:
    """torchvision's targets: the bitmaps of the boxes as masks of the whole picture."""
    import torch

    targets = []
    for b in range(len(data.images)):
        own = np.flatnonzero(data.gt_valid[b])
        bitmaps = np.unpackbits(data.gt_masks[b, own], axis=-1)
        masks = np.zeros((len(own), *data.images.shape[1:3]), np.uint8)
        for mask, bitmap, box in zip(masks, bitmaps, data.gt_boxes[b, own], strict=True):
            x0, y0, x1, y1 = box.round().astype(int)
            rows, columns = (
                np.arange(n) * len(bitmap) // n for n in (max(y1 - y0, 1), max(x1 - x0, 1))
            )
            mask[y0 : y0 + len(rows), x0 : x0 + len(columns)] = bitmap[rows][:, columns][
                : len(mask) - y0, : mask.shape[1] - x0
            ]
        parts = {
            "boxes": data.gt_boxes[b, own],
            "labels": data.gt_classes[b, own].astype(np.int64) + 1,
            "masks": masks,
        }
        targets.append({k: torch.from_numpy(v).to(device) for k, v in parts.items()})
    return targets


def _step(setting: Setting, model: Any, losses: Callable[[], dict]) -> Work:
    import torch

    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=_RATE, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        with peers_torch.autocast(setting):
            total = sum(losses().values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())

    return peers_torch.waiting(step, setting.device)
