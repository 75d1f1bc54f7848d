"""Checkpoint files of the peers, written without them.

Both pickles are written opcode by opcode: they name classes of torch, which is not here, and of
NumPy under the names that every version since 1.0 has.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from maskrcnn_jax.errors import UserError

# NumPy's types and torch's storages of them.
STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}

# Matterport's RPN is a model inside its model: Keras has such a one's layers in one group.
KERAS_NESTED = dict.fromkeys(("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred"), "rpn_model")


def write_torch(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """A state dict in torch's zip format, for `torch.load(path, weights_only=True)`."""
    arrays = {name: _contiguous(x) for name, x in tensors.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _store(archive, "data.pkl", _torch_pickle(arrays))
        _store(archive, "byteorder", b"little")
        for key, x in enumerate(arrays.values()):
            _store(archive, f"data/{key}", x.tobytes())
        _store(archive, "version", b"3\n")


def write_detectron2(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Detectron2's zoo format: a pickle of {"model": {name: array}, "__author__": ...}."""
    with path.open("wb") as file:
        file.write(pickle.PROTO + b"\x03" + pickle.EMPTY_DICT + pickle.MARK + _text("model"))
        file.write(pickle.EMPTY_DICT + pickle.MARK)
        for name, x in tensors.items():
            file.write(_text(name))
            _write_array(file, _contiguous(x))
        file.write(pickle.SETITEMS + _text("__author__") + _text("maskrcnn_jax"))
        file.write(pickle.SETITEMS + pickle.STOP)


def write_safetensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """The safetensors format. Raises UserError without the package."""
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError(
            f'{path}: .safetensors needs a package: pip install "maskrcnn_jax[weights]"'
        ) from error
    save_file({name: _contiguous(x) for name, x in tensors.items()}, path)


def write_keras(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Keras 2's HDF5 of names '<layer>/<weight>', laid out as `model.save_weights` does.

    Layers and weights keep their order. Layers without weights are left out: Keras passes over
    them. Raises UserError for other names, for types that HDF5 lacks, and without h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f'{path}: .h5 needs a package: pip install "maskrcnn_jax[weights]"'
        ) from error
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, x in tensors.items():
        layer, slash, weight = name.partition("/")
        if not (layer and slash and weight) or "/" in weight:
            raise UserError(f"{name}: Keras names its weights 'layer/weight'; write .pth")
        if x.dtype.isbuiltin == 2:
            raise UserError(f"{name}: HDF5 knows no {x.dtype}; write .pth or .safetensors")
        groups.setdefault(KERAS_NESTED.get(layer, layer), {})[f"{name}:0"] = _contiguous(x)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = _fixed(groups)
        # Without these two Keras would turn the kernels, as of Theano or of Keras 1.
        file.attrs["backend"] = np.bytes_(b"tensorflow")
        file.attrs["keras_version"] = np.bytes_(b"2.2.5")
        for name, weights in groups.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = _fixed(weights)
            for weight, x in weights.items():
                group.create_dataset(weight, data=x)


def _fixed(names: Iterable[str]) -> np.ndarray:
    """Texts of fixed length: Keras 2 decodes bytes, and h5py 3 makes str of those of any length."""
    return np.array([name.encode() for name in names], "S")


def _store(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    # Without the time of day: the same tensors are the same file.
    archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)


def _torch_pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """{name: tensor}, each a view of a storage that lies in a file of its own."""
    out = io.BytesIO()
    out.write(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK)
    for key, (name, x) in enumerate(arrays.items()):
        if x.dtype.name not in STORAGES:
            raise UserError(f"{name}: torch has no tensors of {x.dtype}")
        storage = _tuple(
            [
                _text("storage"),
                _global("torch", STORAGES[x.dtype.name]),
                _text(str(key)),
                _text("cpu"),
                _int(x.size),
            ]
        )
        strides = [s // x.itemsize for s in x.strides]
        no_hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
        arguments = [
            storage + pickle.BINPERSID,
            _int(0),
            _tuple(map(_int, x.shape)),
            _tuple(map(_int, strides)),
            pickle.NEWFALSE,
            no_hooks,
        ]
        rebuild = _global("torch._utils", "_rebuild_tensor_v2")
        out.write(_text(name) + rebuild + _tuple(arguments) + pickle.REDUCE)
    out.write(pickle.SETITEMS + pickle.STOP)
    return out.getvalue()


def _write_array(file: io.BufferedWriter, x: np.ndarray) -> None:
    """An array as ndarray.__reduce__ gives it."""
    if x.dtype.isbuiltin == 2:
        raise UserError(f"NumPy's pickles know no {x.dtype}; write .pth or .safetensors")
    empty = [_global("numpy", "ndarray"), _tuple([_int(0)]), _bytes_head(1) + b"b"]
    file.write(_global("numpy.core.multiarray", "_reconstruct") + _tuple(empty) + pickle.REDUCE)
    kind = [_text(x.dtype.str[1:]), pickle.NEWFALSE, pickle.NEWTRUE]
    order = _text(x.dtype.str[0])
    state = [_int(3), order, *[pickle.NONE] * 3, _int(-1), _int(-1), _int(0)]
    dtype = _global("numpy", "dtype") + _tuple(kind) + pickle.REDUCE + _tuple(state) + pickle.BUILD
    file.write(pickle.MARK + _int(1) + _tuple(map(_int, x.shape)) + dtype + pickle.NEWFALSE)
    file.write(_bytes_head(x.nbytes))
    file.write(x.tobytes())
    file.write(pickle.TUPLE + pickle.BUILD)


def _contiguous(x: np.ndarray) -> np.ndarray:
    """Row-major and little-endian; ascontiguousarray alone would give a scalar an axis."""
    if x.dtype.isbuiltin == 2:  # bfloat16, which has no byte order of its own in NumPy
        return np.asarray(x, order="C")
    return np.asarray(x, x.dtype.newbyteorder("<"), order="C")


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(data)]) + data


def _bytes_head(size: int) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", size)


def _tuple(parts: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
