"""Weights that Keras wrote as HDF5, such as Matterport's mask_rcnn_coco.h5."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights.array_files import check_unfolding
from maskrcnn_jax.weights.pickled import Damaged


def read_h5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, attributes) of a Keras file.

    A tensor's name is '<layer>/<weight>', for example 'bn_conv1/gamma' or 'rpn_conv_shared/kernel'.
    The layer is the group's name, since weight names get suffixes (conv1_1) from the second model
    of a process on; in the group of a nested model (rpn_model) it is the inner layer's, without
    such a suffix. Files of model.save() keep all of it under model_weights, which is opened.
    Raises Damaged for what is no such file, UserError where h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{path}: reading HDF5 needs h5py: pip install 'maskrcnn_jax[weights]'"
        ) from None
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _read(file, path.stat().st_size)
    except (Damaged, MemoryError):
        raise
    # HDF5 reports damage as whatever the operation at hand raises.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        cut = "the HDF5 file is cut short: " if "truncated file" in text else ""
        raise Damaged(cut + text) from error


def _read(file: Any, file_size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    root = _child(file, "model_weights") if "model_weights" in file else file
    if "layer_names" not in root.attrs and "layer_names0" not in root.attrs:
        if "layers" in root or "_layer_checkpoint_dependencies" in root:
            raise Damaged(
                "it has the layout of Keras 3; save it with model.save('weights.h5') of Keras 2"
            )
        raise Damaged("it has no attribute 'layer_names', so Keras did not write it as weights")
    layers = _names(root.attrs, "layer_names")
    places = {}
    for layer in layers:
        group = _child(root, layer)
        weights = _names(group.attrs, "weight_names")
        for weight, name in zip(weights, _tensor_names(layer, weights), strict=True):
            if name in places:
                raise Damaged(f"there are two tensors {name!r}")
            places[name] = _dataset(group, weight)
    check_unfolding(sum(d.size * d.dtype.itemsize for d in places.values()), file_size)
    tensors = {}
    for name, dataset in places.items():
        array = dataset[()]
        tensors[name] = np.asarray(array, array.dtype.newbyteorder("="))
    extra = {"layer_names": layers}
    for key in ("backend", "keras_version"):
        if key in root.attrs:
            extra[key] = _text(root.attrs[key])
    return tensors, extra


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _names(attributes: Any, key: str) -> list[str]:
    """A list of names; Keras splits long ones over key0, key1, ..."""
    if key in attributes:
        return [_text(name) for name in attributes[key]]
    if f"{key}0" not in attributes:
        raise Damaged(f"a group has no attribute {key!r}")
    found, i = [], 0
    while f"{key}{i}" in attributes:
        found += [_text(name) for name in attributes[f"{key}{i}"]]
        i += 1
    return found


def _tensor_names(layer: str, weights: list[str]) -> list[str]:
    """The names here of a layer's weights, from Keras's 'conv1_1/kernel:0'."""
    parts = [re.sub(r":\d+$", "", weight).split("/") for weight in weights]
    inner = {part[-2] for part in parts if len(part) > 1}
    if len(inner) <= 1:
        return [f"{layer}/{part[-1]}" for part in parts]
    return ["/".join([re.sub(r"_\d+$", "", part[-2]), part[-1]]) for part in parts]


def _child(group: Any, name: str) -> Any:
    """A group inside a group; never one in another file."""
    import h5py

    if name not in group or not isinstance(group[name], h5py.Group):
        raise Damaged(f"its attributes name the group {name!r}, which is not there")
    _check_links(group, name)
    return group[name]


def _dataset(group: Any, name: str) -> Any:
    """The values of a weight, not yet read; never values of another file."""
    import h5py

    if name not in group or not isinstance(group[name], h5py.Dataset):
        raise Damaged(f"group {group.name!r} names the weight {name!r}, which is not there")
    _check_links(group, name)
    dataset = group[name]
    if dataset.external or dataset.is_virtual:
        raise Damaged(f"the values of {dataset.name!r} lie in another file")
    if dataset.dtype.kind not in "biuf":
        raise Damaged(f"the values of {dataset.name!r} are no numbers, but {dataset.dtype}")
    return dataset


def _check_links(group: Any, name: str) -> None:
    """Damaged when the way to a member leads through a link to another file."""
    import h5py

    for part in name.strip("/").split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise Damaged(f"{name!r} in group {group.name!r} is a link, not values")
        group = group[part]
