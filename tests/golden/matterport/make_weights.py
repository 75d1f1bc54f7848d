"""The golden checkpoints of Matterport's layout: every array is a formula of its name.

    python make_weights.py manifest_resnet50_coco81.json out.h5 [--num-classes n] [--nested]
    python make_weights.py manifest_resnet50_coco81.json --check

`name` is the dataset's path in its canonical spelling, "<layer group>/<weight name>". With
    n = default_rng(crc32(name)).standard_normal(shape)       # [seed, crc32(name)] for a seed > 0
a gamma is 1 + 0.1 n, a moving variance 1 + 0.1 |n|, beta and moving mean 0.1 n, a bias 0.05 n, a
kernel gain / sqrt(fan_in) * n; all float32. The manifest's "overrides" replace single arrays.
"""

import argparse
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np

GAIN = {
    "conv1": math.sqrt(2.0) / 64.0,  # the input has a standard deviation of about 64
    "fpn_c2p2": 1.0,
    "fpn_c3p3": 1.0,
    "fpn_c4p4": 1.0,
    "fpn_c5p5": 1.0,
    "fpn_p2": 1.0,
    "fpn_p3": 1.0,
    "fpn_p4": 1.0,
    "fpn_p5": 1.0,
    "rpn_class_raw": 0.6,
    "rpn_bbox_pred": 0.4,
    "mrcnn_class_logits": 3.5,
    "mrcnn_bbox_fc": 0.4,
    "mrcnn_mask": 3.0,
}
CLASSES = {"mrcnn_class_logits": 1, "mrcnn_mask": 1, "mrcnn_bbox_fc": 4}  # numbers per class


def gain(layer):
    """Of a layer's kernel, so that no activation grows or dies."""
    if layer in GAIN:
        return GAIN[layer]
    if layer.startswith("res") and layer.endswith("_branch2c"):
        return 0.15 if layer.startswith("res4") and layer[4] > "f" else 0.5
    if layer.startswith("res") and layer.endswith("_branch1"):
        return 1.0
    return math.sqrt(2.0)


def leaf(name):
    """('conv1', 'kernel') of 'conv1/conv1/kernel:0'."""
    *_, layer, kind = name.split("/")
    return layer, kind.split(":")[0]


def value(name, shape, seed=0):
    """The float32 array under a canonical name."""
    crc = zlib.crc32(name.encode("ascii"))
    n = np.random.default_rng([seed, crc] if seed else crc).standard_normal(tuple(shape))
    layer, kind = leaf(name)
    if kind == "kernel":
        fan_in = shape[-1] if layer == "mrcnn_mask_deconv" else int(np.prod(shape[:-1]))
        found = gain(layer) / math.sqrt(fan_in) * n
    else:
        found = {
            "gamma": 1.0 + 0.1 * n,
            "beta": 0.1 * n,
            "moving_mean": 0.1 * n,
            "moving_variance": 1.0 + 0.1 * np.abs(n),
            "bias": 0.05 * n,
        }[kind]
    return found.astype(np.float32)


def array(manifest, name, shape):
    """`value` with the manifest's seed, unless the manifest overrides it."""
    override = manifest.get("overrides", {}).get(name)
    if override is None:
        return value(name, shape, manifest.get("seed", 0))
    found = np.zeros(shape, np.float32)
    count = min(len(override), shape[0])
    found[:count] = np.asarray(override, np.float32)[:count]
    return found


def arrays(manifest, num_classes=None):
    """(group, weight name, array) of the whole checkpoint.

    num_classes: with background; None: the manifest's.
    """
    for layer in manifest["layers"]:
        for weight in layer["weights"]:
            canonical = f"{layer['name']}/{weight.get('canonical', weight['name'])}"
            shape = list(weight["shape"])
            if num_classes is not None and leaf(canonical)[0] in CLASSES:
                shape[-1] = CLASSES[leaf(canonical)[0]] * num_classes
            yield layer["name"], weight["name"], array(manifest, canonical, shape)


def write(manifest, path, num_classes=None, nested=False):
    """Writes the checkpoint as Keras does; nested: as model.save()."""
    import h5py

    with h5py.File(path, "w") as file:
        top = file.create_group("model_weights") if nested else file
        layers = manifest["layers"]
        top.attrs["layer_names"] = [layer["name"].encode("ascii") for layer in layers]
        top.attrs["backend"] = b"tensorflow"
        top.attrs["keras_version"] = manifest["keras_version"].encode("ascii")
        for layer in layers:
            group = top.create_group(layer["name"])
            names = [weight["name"].encode("ascii") for weight in layer["weights"]]
            group.attrs["weight_names"] = names or np.zeros((0,), "S1")
        for group, name, data in arrays(manifest, num_classes):
            top[group].create_dataset(name, data=data)


def check(manifest):
    """How many of the recorded sums do not come out."""
    bad = 0
    for entry in manifest["check"]:
        found = array(manifest, entry["name"], entry["shape"]).astype(np.float64)
        sums = [found.sum(), np.abs(found).sum(), *found.ravel()[:4]]
        bad += not np.allclose(sums, entry["sum_abs_first4"], rtol=1e-6, atol=1e-6)
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("output", nargs="?")
    parser.add_argument("--num-classes", type=int, help="with background")
    parser.add_argument("--nested", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    manifest = json.loads(args.manifest.read_text())
    if args.check or not args.output:
        return 1 if check(manifest) else 0
    write(manifest, args.output, args.num_classes, args.nested)
    return 0


if __name__ == "__main__":
    sys.exit(main())
