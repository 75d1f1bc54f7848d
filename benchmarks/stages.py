"""The roofline of each stage of training and of prediction, the MFU of the step, its kernels.

    python -m benchmarks.stages --device gpu --dtype bfloat16 --json stages.json
    python -m benchmarks.stages --small                          # says nothing about speed

The model is torchvision's R50-FPN with frozen norms, stem and res2 frozen, as in `training`. First
the whole training step: images a second, MFU, the kernels of a profile and the part of the model
that each belongs to. Then every stage compiled alone at the shapes that it has in the step, on what
the stages before it made: time, FLOPs, bytes, and the share of the rates of a large matrix product
and of a large copy, measured in the same run. The stages of layers and losses run forward and
backward in training.

FLOPs are those of products and convolutions, counted in the traced program with loops as often as
they run (`counting`); where a stage has none, XLA's own. Bytes are XLA's, times what the traced
program tells of loops, which XLA counts once: an estimate. MFU counts the layers alone, not
ROIAlign's products (nearly all with zeros) nor what is computed twice for them; HFU counts all.
Written after each stage, so that a run that is stopped leaves what it has.
"""

import argparse
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console
from rich.table import Table

from benchmarks import compiling, counting, kernels, peers_torch, run
from benchmarks.timing import Case, Setting, alternate
from benchmarks.train_step import SMALL, Fields, optim_fields, synthetic_batch
from maskrcnn_jax import losses, runtime, selection
from maskrcnn_jax.assignment import assign
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import init_state, init_variables, make_train_step
from maskrcnn_jax.weights.presets import PRESETS

# FLOP/s in bfloat16 without sparsity, of the makers' data sheets.
_NOMINAL = {"H100 PCIe": 756e12, "H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
# As in `training`, so that the step is that program: the compilation cache has it.
_CLASSES = peers_torch.CLASSES - 1
_RATE = 1e-6  # random weights learn nothing; they are to stay as they are


class Stage(NamedTuple):
    """A part of a program: function(inputs, fixed) -> outputs.

    gradient: forward and backward, to the inputs. layers: its FLOPs count in MFU.
    """

    name: str
    function: Callable[[Any, Any], Any]
    inputs: Any
    fixed: Any = ()
    gradient: bool = True
    layers: bool = False


# Yields stages one after another and is sent the outputs of each, arrays or shapes.
Chain = Generator[Stage, Any, None]


class Setup(NamedTuple):
    """The model with random weights, its optimizer, and a batch on the device."""

    model: mask_rcnn.MaskRCNN
    variables: dict[str, Any]
    tx: optax.GradientTransformation
    step: Callable
    trained: Any
    batch: Any


def main(argv: list[str] | None = None) -> dict:
    """Parses, measures, prints, writes; returns what was written."""
    args = _parser().parse_args(argv)
    run.use_device(args.device)
    setting = Setting(
        device="cuda" if args.device == "gpu" else "cpu", dtype=args.dtype, small=args.small
    )
    size = (64, 64) if args.small else args.size
    count = jax.device_count() if args.small else args.batch
    peaks = {"product": compiling.matmul_rate(setting), "copy": copy_rate(args.small)}
    report = run.head(args, {}) | {"peaks": peaks, "stages": []}
    save = lambda: run.write(args.json, report) if args.json else None  # noqa: E731
    what = args.what.split(",")
    setup = prepare(setting, count, size)
    if "step" in what:
        report["step"] = whole_step(setup, peaks, args.rounds)
        save()
        _print_step(report["step"])
    for name, chain in (("train", training), ("predict", prediction)):
        if name in what:
            for found in follow(chain(setup), lambda s: measure(s, peaks, args.rounds)):
                report["stages"].append({"of": name} | found)
                save()
                print(f"{name}, {found['stage']}: {found['ms']:.3f} ms", flush=True)
    _print_stages(report["stages"])
    return report


def prepare(setting: Setting, count: int, size: tuple[int, int]) -> Setup:
    """A batch of `count` pictures of `size` (height, width), and what trains on it."""
    fields = PRESETS["torchvision_v1"]["model"] | {"dtype": setting.dtype}
    model = mask_rcnn.build(Fields(**fields | (SMALL if setting.small else {})), _CLASSES)
    variables = jax.tree.map(np.asarray, init_variables(model, 0))
    optim = optim_fields()
    optim.base_lr = _RATE
    tx, schedule, trained = make_optimizer(
        variables["params"], optim, fields["freeze_at"], 1000, count
    )
    mesh = runtime.make_mesh()
    step = make_train_step(model, tx, schedule, trained, mesh)
    batch = synthetic_batch(np.random.default_rng(0), count, *size)
    return Setup(model, variables, tx, step, trained, runtime.shard_batch(batch, mesh))


def whole_step(setup: Setup, peaks: dict[str, float], rounds: int) -> dict:
    """Time, rates, FLOPs, MFU and the kernels of the training step."""
    state = runtime.replicate(init_state(setup.variables, setup.tx, 0.0), runtime.make_mesh())
    program = setup.step.lower(state, setup.batch).compile(runtime.compiler_options())

    def once() -> Any:
        nonlocal state
        state, metrics = program(state, setup.batch)
        return jax.block_until_ready(metrics)

    seconds = alternate(Case("step", once), rounds, 2)["seconds"]["ours"]
    stages = [stage for stage in follow(training(setup), _shapes) if stage.layers]
    layers = sum(counting.count(_program(stage), *_arguments(stage)).flops for stage in stages)
    flops = counting.count(setup.step, state, setup.batch).flops
    images = len(setup.batch.images)
    events = kernels.trace(lambda: [once() for _ in range(3)])
    source = kernels.sources(program.as_text())
    found = {
        "ms": 1e3 * seconds,
        "images_per_second": images / seconds,
        "layers_gflop_per_image": layers / images / 1e9,
        "gflop_per_image": flops / images / 1e9,
        "mfu_of_measured_peak": layers / seconds / peaks["product"],
        "hfu_of_measured_peak": flops / seconds / peaks["product"],
        "device_busy": kernels.busy(events),
        "parts": kernels.by_part(events, source),
        "kernels": kernels.top(events, source),
    }
    if nominal := nominal_peak(jax.devices()[0].device_kind):
        found["nominal_peak"] = nominal
        found["mfu"] = layers / seconds / nominal
        found["hfu"] = flops / seconds / nominal
    return found


def nominal_peak(kind: str) -> float | None:
    """FLOP/s of a device of this kind by its maker; None of an unknown one."""
    return next((peak for name, peak in _NOMINAL.items() if name in kind), None)


def copy_rate(small: bool) -> float:
    """Bytes a second, read and written, of adding one to a large array; best of five."""
    x = jnp.zeros(2**20 if small else 2**28, jnp.float32)
    work = jax.jit(lambda x: x + 1)
    case = Case("copy", lambda: work(x).block_until_ready())
    best = min(alternate(case, 1, 1)["seconds"]["ours"] for _ in range(5))
    return 2 * x.nbytes / best


def follow(chain: Chain, do: Callable[[Stage], tuple[Any, Any]]) -> Iterator[Any]:
    """Goes through a chain. do: of a stage, its outputs and what is to be yielded of it."""
    outputs = None
    while True:
        try:
            stage = chain.send(outputs)
        except StopIteration:
            return
        outputs, found = do(stage)
        yield found


def measure(stage: Stage, peaks: dict[str, float], rounds: int) -> tuple[Any, dict]:
    """The outputs of a stage, and its row of the table."""
    device = jax.local_devices()[0]
    inputs, fixed = jax.device_put((stage.inputs, stage.fixed), device)
    stage = stage._replace(inputs=inputs, fixed=fixed)
    function, args = _program(stage), jax.device_put(_arguments(stage), device)
    found = counting.count(function, *args)
    program = jax.jit(function).lower(*args).compile(runtime.compiler_options())
    made = program(*args)
    work = lambda: jax.block_until_ready(program(*args))  # noqa: E731
    seconds = alternate(Case(stage.name, work), rounds, 2)["seconds"]["ours"]
    told = row(stage.name, seconds, found, program.cost_analysis(), peaks)
    return made[0] if stage.gradient else made, told


def _program(stage: Stage) -> Callable:
    """What of a stage is compiled."""
    if not stage.gradient:
        return stage.function

    def both(inputs: Any, fixed: Any, cotangent: Any) -> tuple[Any, Any]:
        outputs, pull = jax.vjp(lambda x: stage.function(x, fixed), inputs)
        return outputs, pull(cotangent)

    return both


def _arguments(stage: Stage) -> tuple:
    """Its arguments. The gradient of the outputs is one of them: a constant would be folded."""
    args = (stage.inputs, stage.fixed)
    if not stage.gradient:
        return args
    shapes = jax.eval_shape(stage.function, *args)
    return *args, jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)


def _shapes(stage: Stage) -> tuple[Any, Stage]:
    return jax.eval_shape(stage.function, stage.inputs, stage.fixed), stage


def row(
    name: str, seconds: float, found: counting.Count, cost: Any, peaks: dict[str, float]
) -> dict:
    """Where a stage stands under the roofs. cost: XLA's analysis of its program."""
    cost = (cost[0] if isinstance(cost, list) else cost) or {}
    flops = found.flops or cost.get("flops", 0.0) * found.loops
    moved = cost.get("bytes accessed", 0.0) * found.loops
    least = {"products": flops / peaks["product"], "memory": moved / peaks["copy"]}
    roof = max(least, key=least.get)
    near = least[roof] > seconds / 4
    return {
        "stage": name,
        "ms": 1e3 * seconds,
        "gflop": flops / 1e9,
        "gbyte": moved / 1e9,
        "flop_per_byte": flops / max(moved, 1.0),
        "of_product_peak": flops / seconds / peaks["product"],
        "of_copy_peak": moved / seconds / peaks["copy"],
        "roof_ms": 1e3 * least[roof],
        # Far below both roofs, launches, dependences or bad kernels are what it waits for.
        "bound": roof if near else "neither",
    }


class _Through(nn.Module):
    """In place of the FPN, where the backbone is to run alone."""

    def __call__(self, stages: dict[str, Any], train: bool) -> dict[str, Any]:
        return stages


def training(setup: Setup) -> Chain:
    """The stages of the training step."""
    model, s, batch = setup.model, setup.model.settings, setup.batch
    pyramid, logits, deltas = yield from _network(setup, train=True)
    canvas, topk = batch.images.shape[1:3], (s.rpn_pre_nms_topk_train, s.rpn_post_nms_topk_train)
    keys = jax.random.split(jax.random.key(0), len(batch.images))

    def propose(inputs: tuple, hw: Any) -> Any:
        one = lambda args: selection.propose(s, canvas, *topk, *args)  # noqa: E731
        return jax.lax.map(one, (*inputs, hw))

    yield Stage("proposals: top-k, NMS", propose, (logits, deltas), batch.image_hw, False)
    rpn, samples, roi_deltas, masks, *_ = yield Stage(
        "proposals, matching, sampling, targets",
        lambda inputs, fixed: assign(s, True, 0, *inputs, *fixed),
        (logits, deltas),
        (batch, keys),
        False,
    )
    levels = {name: pyramid[name] for name in s.roi_levels}
    pooled = yield _pool(model, levels, samples.rois, s.box_pool_size, True)
    class_logits, class_deltas = yield _box_head(setup, pooled, True)
    slots = masks.shape[1]
    pooled = yield _pool(model, levels, samples.rois, s.mask_pool_size, True, slots)
    mask_logits = yield _mask_head(setup, pooled, samples.classes, True, slots)
    outputs = (logits, deltas, class_logits, class_deltas, mask_logits)
    yield Stage("losses", _losses(s), outputs, (rpn, samples, roi_deltas, masks))
    params = setup.variables["params"]
    yield Stage("optimizer", _update(setup.tx), (params, setup.tx.init(params), params), (), False)


def prediction(setup: Setup) -> Chain:
    """The stages of prediction, and all of it in one program."""
    model, s, batch = setup.model, setup.model.settings, setup.batch
    pyramid, logits, deltas = yield from _network(setup, train=False)
    canvas, topk = batch.images.shape[1:3], (s.rpn_pre_nms_topk_test, s.rpn_post_nms_topk_test)
    propose = jax.vmap(lambda *args: selection.propose(s, canvas, *topk, *args))
    proposals = yield Stage(
        "proposals: top-k, NMS",
        lambda inputs, hw: propose(*inputs, hw),
        (logits, deltas),
        batch.image_hw,
        False,
    )
    levels = {name: pyramid[name] for name in s.roi_levels}
    pooled = yield _pool(model, levels, proposals.boxes, s.box_pool_size, False)
    scored = yield _box_head(setup, pooled, False)
    window = jax.vmap(lambda hw: selection.picture_window(s, hw))(batch.image_hw)
    detect = jax.vmap(lambda *args: selection.detect(s, *args))
    boxes, _, classes, *_ = yield Stage(
        "detections: softmax, top-k, NMS",
        lambda inputs, window: detect(*inputs, window),
        (proposals, *scored),
        window,
        False,
    )
    pooled = yield _pool(model, levels, boxes, s.mask_pool_size, False)
    yield _mask_head(setup, pooled, classes, False, classes.shape[1])
    yield Stage(
        "all of prediction",
        lambda variables, images: mask_rcnn.forward_predict(model, variables, *images),
        setup.variables,
        (batch.images, batch.image_hw),
        False,
    )


def _network(setup: Setup, train: bool) -> Generator[Stage, Any, tuple]:
    """Backbone, FPN and RPN head; returns the pyramid, logits and deltas."""
    params, stats = setup.variables["params"], setup.variables["batch_stats"]
    body = setup.model.clone(fpn=_Through())

    def backbone(own: Any, fixed: tuple) -> Any:
        stats, *images = fixed
        trained = setup.trained["backbone"]
        own = jax.tree.map(lambda p, on: p if on else jax.lax.stop_gradient(p), own, trained)
        variables = {"params": {"backbone": own}, "batch_stats": stats}
        return body.apply(variables, *images, train, method=body.features)

    def fpn(model: mask_rcnn.MaskRCNN, maps: dict[str, Any]) -> dict[str, Any]:
        # Below C2 all is frozen.
        return model.fpn(maps | {"c2": jax.lax.stop_gradient(maps["c2"])}, train)

    images = (stats, setup.batch.images, setup.batch.image_hw)
    maps = yield Stage("normalise, backbone", backbone, params["backbone"], images, train, True)
    pyramid = yield _layer(setup, "FPN", "fpn", fpn, (maps,), (), train)
    head = lambda model, pyramid: model.rpn_head(pyramid)  # noqa: E731
    logits, deltas = yield _layer(setup, "RPN head", "rpn_head", head, (pyramid,), (), train)
    return pyramid, logits, deltas


def _layer(
    setup: Setup, name: str, module: str, call: Callable, inputs: tuple, fixed: tuple, train: bool
) -> Stage:
    """One module. call: of the model, `inputs` and `fixed`; gradients go to the inputs alone."""
    own = setup.variables["params"][module]

    def function(inputs: tuple, fixed: tuple) -> Any:
        own, *x = inputs
        stats, *rest = fixed
        variables = {"params": {module: own}, "batch_stats": stats}
        return setup.model.apply(variables, *x, *rest, method=call)

    fixed = (setup.variables["batch_stats"], *fixed)
    return Stage(name, function, (own, *inputs), fixed, train, True)


def _pool(
    model: mask_rcnn.MaskRCNN,
    levels: dict[str, Any],
    rois: Any,
    size: int,
    train: bool,
    slots: int | None = None,
) -> Stage:
    """ROIAlign of the first `slots` rois of each image."""
    number = slots or rois.shape[1]
    pool = lambda levels, rois: model.pool(levels, rois[:, :number], size)  # noqa: E731
    return Stage(f"ROIAlign of {number} rois to {size}x{size}", pool, levels, rois, train)


def _box_head(setup: Setup, pooled: Any, train: bool) -> Stage:
    def call(model: mask_rcnn.MaskRCNN, pooled: Any) -> tuple[Any, Any]:
        flat = pooled.reshape(-1, *pooled.shape[2:])
        return tuple(
            x.reshape(*pooled.shape[:2], *x.shape[1:]) for x in model.box_head(flat, train)
        )

    return _layer(setup, "box head", "box_head", call, (pooled,), (), train)


def _mask_head(setup: Setup, pooled: Any, classes: Any, train: bool, slots: int) -> Stage:
    """All slots, as on GPUs."""

    def call(model: mask_rcnn.MaskRCNN, pooled: Any, classes: Any) -> Any:
        # The background, too, takes a row: that of the last class.
        own = jnp.minimum(classes[:, :slots], _CLASSES - 1).reshape(-1)
        logits = model.mask_head(pooled.reshape(-1, *pooled.shape[2:]), own, train)
        return logits.reshape(*pooled.shape[:2], *logits.shape[1:])

    return _layer(setup, "mask head", "mask_head", call, (pooled,), (classes,), train)


def _losses(s: Any) -> Callable[[tuple, tuple], tuple]:
    gather = jax.vmap(lambda x, i: x[i])

    def function(outputs: tuple, goals: tuple) -> tuple:
        logits, deltas, class_logits, class_deltas, mask_logits = outputs
        (rows, fg, valid, rpn_deltas), samples, roi_deltas, masks = goals
        chosen = (gather(logits, rows), gather(deltas, rows))
        rpn = losses.rpn_losses(*chosen, rpn_deltas, fg, valid, s.rpn_smooth_l1_beta)
        labels = (samples.classes, samples.fg, samples.valid)
        predicted = (class_logits, class_deltas, roi_deltas)
        box = losses.box_losses(*predicted, *labels, s.box_smooth_l1_beta)
        return *rpn, *box, losses.mask_loss(mask_logits, masks, samples.fg[:, : masks.shape[1]])

    return function


def _update(tx: optax.GradientTransformation) -> Callable[[tuple, tuple], tuple]:
    def function(inputs: tuple, fixed: tuple) -> tuple:
        params, state, gradients = inputs
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return function


def _print_step(step: dict) -> None:
    console = Console(width=150)
    skipped = ("parts", "kernels")
    console.print({k: v for k, v in step.items() if k not in skipped}, highlight=False)
    console.print({k: f"{v:.1%}" for k, v in step["parts"].items()}, highlight=False)
    table = Table("kernel", "ms of 3 steps", "share", "calls", "source")
    for found in step["kernels"]:
        numbers = (f"{found['ms']:.2f}", f"{found['share']:.1%}", str(found["calls"]))
        table.add_row(found["kernel"], *numbers, found["source"])
    console.print(table)


def _print_stages(stages: list[dict]) -> None:
    table = Table(
        "", "stage", "ms", "GFLOP", "GB", "FLOP/B", "of product", "of copy", "roof, ms", "bound"
    )
    for found in stages:
        rates = [f"{found[key]:.1%}" for key in ("of_product_peak", "of_copy_peak")]
        sizes = [f"{found[key]:.4g}" for key in ("ms", "gflop", "gbyte", "flop_per_byte")]
        table.add_row(
            found["of"], found["stage"], *sizes, *rates, f"{found['roof_ms']:.3g}", found["bound"]
        )
    Console(width=150).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", default="step,train,predict", help="by commas")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=run.size, default=(800, 1344), help="800x1344")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for the report alone")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser


if __name__ == "__main__":
    main()
