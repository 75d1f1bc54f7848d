"""The two sides of the race: the same recipe and initial weights, in our model and torchvision's.

A side has `train(numbers)`, which takes the optimizer steps of the batches of these numbers and
returns the losses of each, and `predict(images)`. Batches lie on the device beforehand, and both
sides have run a step before the clock starts.

The same on both sides: the weights, all convolutions trained; batch norms (eps 1e-5, momentum 0.1,
statistics of the batch), because both frameworks have a fast one, while torch's GroupNorm leaves
bfloat16 and channels_last, which would be a race against a detour; AdamW without decay of the
norms, warm-up and cosine, clipping; anchors, thresholds, numbers of proposals and sampled rois,
weights and betas of the losses; the pasting of predicted masks. Not the same: which anchors and
rois the random samplers draw; mask targets, that torchvision leaves soft and ours round, as
Detectron2 does; running variances, that torch takes over n - 1.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks import inference, peers_torch, race_data
from benchmarks.race_data import Picture
from benchmarks.timing import Setting
from benchmarks.train_step import SMALL, Fields, optim_fields
from maskrcnn_jax import runtime
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.optimizer import make_optimizer, make_schedule
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step
from maskrcnn_jax.weights import torchvision
from maskrcnn_jax.weights.presets import PRESETS

CLASSES = len(race_data.CATEGORY_IDS)
# torchvision's names of our terms.
TERMS = {
    "rpn_cls": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "cls": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}


@dataclass(frozen=True)
class Recipe:
    """What both sides train with; what is not named here is torchvision's default."""

    depth: int = 50
    fpn_channels: int = 256
    side: int = 512  # of the square pictures
    batch: int = 16
    steps: int = 480
    rate: float = 1e-3  # at the end of the warm-up, then a cosine to 0
    warmup: int = 50
    decay: float = 1e-2
    clip: float = 10.0
    rois: int = 128  # sampled of an image
    pre_nms: int = 1000  # proposals of a level
    post_nms: int = 500
    detections: int = 50
    mean: float = 127.5  # of the pictures, 0..255
    std: float = 64.0


class Found(NamedTuple):
    """Detections of a picture, best first."""

    boxes: np.ndarray  # float32 [n, 4], xyxy in pixels
    scores: np.ndarray  # float32 [n]
    classes: np.ndarray  # int32 [n], 0 .. 5
    masks: np.ndarray  # float32 [n, 28, 28], probabilities in the frame of the box


def recipe_optim(recipe: Recipe) -> Fields:
    """The `optim` group of our config."""
    fields = optim_fields()
    fields.name, fields.schedule, fields.b2 = "adamw", "cosine", 0.999
    fields.base_lr, fields.base_batch = recipe.rate, recipe.batch
    fields.warmup_steps, fields.warmup_factor = recipe.warmup, 0.01
    fields.weight_decay, fields.clip_norm = recipe.decay, recipe.clip
    return fields


class Ours:
    """Our side. peer: torchvision's model, whose weights it begins with; None: random ones."""

    name = "ours"

    def __init__(
        self, setting: Setting, recipe: Recipe, batches: list[list[Picture]], peer: Any = None
    ):
        fields = _fields(setting, recipe)
        if peer is not None:
            fields |= torchvision.describe(peer.state_dict()).model
        elif setting.small:
            fields |= SMALL
        self.model = mask_rcnn.build(Fields(**fields), CLASSES)
        variables = _imported(self.model, peer) if peer else init_variables(self.model, 0)
        variables = jax.tree.map(np.asarray, variables)
        tx, schedule, trained = make_optimizer(
            variables["params"], recipe_optim(recipe), 0, recipe.steps, recipe.batch
        )
        mesh = runtime.make_mesh()
        step = make_train_step(self.model, tx, schedule, trained, mesh)
        start = lambda: runtime.replicate(init_state(variables, tx, 0.0), mesh)  # noqa: E731
        self.batches = [runtime.shard_batch(race_data.batch(b), mesh) for b in batches]
        self.program = step.lower(start(), self.batches[0]).compile(runtime.compiler_options())
        jax.block_until_ready(self.program(start(), self.batches[0]))
        self.state = start()
        self._predict = jax.jit(
            lambda v, images, hw: mask_rcnn.forward_predict(self.model, v, images, hw)
        )

    def train(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Steps on these batches; the losses of each, on the device."""
        losses = []
        for number in numbers:
            self.state, metrics = self.program(self.state, self.batches[number])
            losses.append({key: metrics[key] for key in ("loss", *TERMS)})
        jax.block_until_ready(self.state)
        return losses

    def predict(self, images: np.ndarray) -> list[Found]:
        """Detections of uint8 pictures [B, S, S, 3]."""
        variables = {"params": self.state.params, "batch_stats": self.state.batch_stats}
        sizes = np.tile(np.int32(images.shape[1:3]), (len(images), 1))
        found = jax.device_get(self._predict(variables, images, sizes))
        fields = (found.boxes, found.scores, found.classes, found.masks)
        return [Found(*(x[b, found.valid[b]] for x in fields)) for b in range(len(images))]


class Torchvision:
    """torchvision's side, in mixed precision and channels_last as the setting says."""

    name = "torchvision"

    def __init__(self, setting: Setting, recipe: Recipe, batches: list[list[Picture]], model: Any):
        import torch

        self.setting, self.recipe, self.done = setting, recipe, 0
        self.batches = [[_tensors(p, setting.device) for p in batch] for batch in batches]
        # It fills caches and chooses kernels, on a copy.
        trained = model.to(memory_format=torch.channels_last)
        self.model = copy.deepcopy(trained)
        self._optimizer = self._adamw(self.model)
        for _ in range(setting.warm_up):
            self._step(0, 0.0)
        self.model = trained
        self._optimizer = self._adamw(self.model)
        schedule = make_schedule(recipe_optim(recipe), recipe.steps, recipe.batch)
        self._rates = [float(schedule(step)) for step in range(recipe.steps)]

    def train(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Steps on these batches; the losses of each, on the device."""
        first, self.done = self.done, self.done + len(numbers)
        rates = self._rates[first : self.done]
        run = lambda: [self._step(n, r) for n, r in zip(numbers, rates, strict=True)]  # noqa: E731
        return peers_torch.waiting(run, self.setting.device)()

    def predict(self, images: np.ndarray) -> list[Found]:
        """Detections of uint8 pictures [B, S, S, 3]."""
        inputs = peers_torch.tensors(images, self.setting.device)
        found = []
        for out in inference.torch_network(self.setting, self.model, inputs)():
            out = {k: x.float().cpu().numpy() for k, x in out.items()}
            classes = out["labels"].astype(np.int32) - 1
            found.append(Found(out["boxes"], out["scores"], classes, out["masks"][:, 0]))
        return found

    def _step(self, number: int, rate: float) -> dict[str, Any]:
        import torch

        self.model.train()
        images, targets = zip(*self.batches[number], strict=True)
        images = torch.stack(images).float().div_(255).unbind()
        with peers_torch.autocast(self.setting):
            found = self.model(list(images), list(targets))
        total = sum(found.values())
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        terms = {ours: found[theirs].detach() for ours, theirs in TERMS.items()}
        return {"loss": total.detach(), **terms}

    def _adamw(self, model: Any) -> Any:
        import torch

        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        without = {id(p) for m in norms for p in m.parameters()}
        groups = [[], []]
        for parameter in model.parameters():
            groups[id(parameter) in without].append(parameter)
        decays = (self.recipe.decay, 0.0)
        return torch.optim.AdamW(
            [{"params": g, "weight_decay": d} for g, d in zip(groups, decays, strict=True)],
            lr=0.0,
            fused=self.setting.device == "cuda",
        )


def torch_model(setting: Setting, recipe: Recipe) -> Any:
    """torchvision's Mask R-CNN of the recipe with random weights (its own, seed 0)."""
    import torch
    from torchvision.models import resnet
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    torch.manual_seed(0)
    body = getattr(resnet, f"resnet{recipe.depth}")(weights=None)
    widths = [body.inplanes // 8 * 2**i for i in range(4)]
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    model = MaskRCNN(
        BackboneWithFPN(body, layers, widths, recipe.fpn_channels),
        CLASSES + 1,
        min_size=recipe.side,
        max_size=recipe.side,
        image_mean=[recipe.mean / 255] * 3,
        image_std=[recipe.std / 255] * 3,
        rpn_pre_nms_top_n_train=recipe.pre_nms,
        rpn_pre_nms_top_n_test=recipe.pre_nms,
        rpn_post_nms_top_n_train=recipe.post_nms,
        rpn_post_nms_top_n_test=recipe.post_nms,
        box_batch_size_per_image=recipe.rois,
        box_detections_per_img=recipe.detections,
        # The pictures have their size already; it would copy each of them and their masks.
        _skip_resize=True,
    )
    _boxes_in_float32(model)
    return model.to(setting.device)


def _boxes_in_float32(model: Any) -> None:
    """Anchors, proposals and detections in float32 under autocast, too.

    In bfloat16 torchvision would round them to 8 bits, that is to 2 pixels of 512, and lose AP in
    what is to be the same recipe. Ours leaves bfloat16 behind the heads' last layers as well.
    """
    import torch

    widen = lambda module, args, found: tuple(  # noqa: E731
        [x.float() for x in part] if isinstance(part, list) else part.float() for part in found
    )

    def shapes_alone(module: Any, args: tuple) -> tuple:
        images, maps = args
        return images, [m.new_empty((1, *m.shape[-2:]), dtype=torch.float32) for m in maps]

    model.rpn.head.register_forward_hook(widen)
    model.roi_heads.box_predictor.register_forward_hook(widen)
    model.rpn.anchor_generator.register_forward_pre_hook(shapes_alone)


def _fields(setting: Setting, recipe: Recipe) -> dict[str, Any]:
    return PRESETS["torchvision_v1"]["model"] | {
        "depth": recipe.depth,
        "norm": "batch",
        "freeze_at": 0,
        "fpn_channels": recipe.fpn_channels,
        "pixel_mean": (recipe.mean,) * 3,
        "pixel_std": (recipe.std,) * 3,
        "roi_batch_per_image": recipe.rois,
        "rpn_pre_nms_topk_train": recipe.pre_nms,
        "rpn_pre_nms_topk_test": recipe.pre_nms,
        "rpn_post_nms_topk_train": recipe.post_nms,
        "rpn_post_nms_topk_test": recipe.post_nms,
        "max_candidates": recipe.post_nms * CLASSES,  # all there can be, as in torchvision
        "max_detections": recipe.detections,
        "dtype": setting.dtype,
    }


def _imported(model: mask_rcnn.MaskRCNN, peer: Any) -> dict[str, Any]:
    """Our variables with the peer's fresh weights; its norms begin as ours do, with 1 and 0."""
    images, hw = np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 2), 64, np.int32)
    shapes = flatten_dict(dict(jax.eval_shape(model.init, jax.random.key(0), images, hw)))
    weights = flatten_dict({"params": peers_torch.variables(peer)["params"]})
    begin = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}
    found = {
        path: np.full(x.shape, begin[path[-1]], x.dtype) if "norm" in path else weights[path]
        for path, x in shapes.items()
    }
    return unflatten_dict(found)


def _tensors(picture: Picture, device: str) -> tuple[Any, dict[str, Any]]:
    """uint8 [3, S, S] and torchvision's targets."""
    import torch

    image = torch.from_numpy(picture.image.copy()).permute(2, 0, 1).contiguous().to(device)
    parts = {
        "boxes": picture.boxes,
        "labels": picture.classes.astype(np.int64) + 1,
        "masks": picture.masks.astype(np.uint8),
    }
    return image, {k: torch.from_numpy(x).to(device) for k, x in parts.items()}
