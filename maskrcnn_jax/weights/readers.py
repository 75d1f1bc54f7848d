"""Files of weights as plain arrays by name, whatever program wrote them; no framework needed.

The kind of a file is told by its content. Nothing in it is executed: see `unpickle`.
"""

import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import unpickle

_HDF5 = b"\x89HDF\r\n\x1a\n"
# What a torch file from before 1.6 begins with, as a pickled number.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Where the parameters lie in a training checkpoint, the likeliest first.
_STATE_DICTS = ("model", "state_dict", "model_state_dict", "params_ema", "blobs", "ema_state_dict")


@dataclass(frozen=True)
class Source:
    """What a file holds."""

    path: Path
    format: str  # "pth", "pkl", "safetensors", "h5", "npz"
    tensors: dict[str, np.ndarray]  # the state dict
    extra: dict[str, Any] = field(default_factory=dict)  # the plain rest: metadata, step, ...


def read(path: str | os.PathLike) -> Source:
    """Reads torch's .pth (both formats), Detectron2's .pkl, .safetensors, Keras' .h5 and .npz.

    Keras' names become "<layer>/<weight>", "conv1/kernel". A prefix "module." of all names goes.

    Raises:
      UserError: the file is missing, damaged, of another kind, or holds what is no tensor and no
        plain container; names the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder, not a file of weights" if path.is_dir() else "there is no such file"
        raise UserError(f"{path}: {what}")
    kind, reader = _choose(path)
    try:
        found = reader(path)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: claims to hold more than the memory does") from error
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise UserError(
            f"{path}: a damaged or truncated .{kind} file ({type(error).__name__}: {reason}); "
            "get it again and compare its size"
        ) from error
    tensors, extra = _state_dict(found)
    if not tensors:
        raise UserError(f"{path}: a .{kind} file that holds no tensors; give a file of weights")
    return Source(path, kind, tensors, extra)


def _choose(path: Path) -> tuple[str, Callable[[Path], Any]]:
    """The kind of a file and its reader, by its first bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _choose_zip(path)
    if head.startswith(_HDF5):
        return "h5", _read_keras
    if head[257:262] == b"ustar" or head.startswith(b"sys_info"):
        raise UserError(
            f"{path}: a checkpoint in torch's tar format of 2017; open it with any torch "
            "from 0.2 to today and save its state dict again"
        )
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        legacy = head[2:14].startswith(b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")
        return ("pth", _read_legacy_torch) if legacy else ("pkl", _read_pickle)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors", _read_safetensors
    if not head:
        what = "the file is empty"
    elif head.startswith(b"version https://git-lfs"):
        what = "a git-LFS pointer, not the file itself: run `git lfs pull`"
    elif head.lstrip().startswith(b"<"):
        what = "a web page (XML or HTML) saved under the name of weights: download it again"
    else:
        what = f"no known kind of weights (it begins with {head[:8]!r})"
    raise UserError(f"{path}: {what}. Known are .pth, .pkl, .safetensors, .h5 and .npz")


def _choose_zip(path: Path) -> tuple[str, Callable[[Path], Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: a truncated or damaged zip file (.pth or .npz: {error}); get it again and "
            "compare its size"
        ) from error
    if any(name.endswith("/data.pkl") for name in names):
        return "pth", _read_torch
    if names and all(name.endswith(".npy") for name in names):
        return "npz", _read_npz
    raise UserError(f"{path}: a zip file, but neither torch's nor NumPy's")


def _read_torch(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        size = path.stat().st_size

        def content(name: str) -> bytes:
            entry = archive.getinfo(name)
            # torch stores without compression: what claims more than the file is no honest file.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise ValueError(f"the entry {name!r} is compressed or larger than the file")
            return archive.read(name)

        order = sys.byteorder
        if f"{folder}byteorder" in archive.namelist():
            order = content(f"{folder}byteorder").decode()
        arrays: dict[str, np.ndarray] = {}

        def storage(note: unpickle.Storage) -> np.ndarray:
            if note.key not in arrays:
                dtype = note.dtype.newbyteorder("<" if order == "little" else ">")
                arrays[note.key] = np.frombuffer(content(f"{folder}data/{note.key}"), dtype)
            return _as(arrays[note.key], note)

        return unpickle.finish(unpickle.load(io.BytesIO(content(pickled)), str(path)), storage)


def _read_legacy_torch(path: Path) -> Any:
    with path.open("rb") as file:
        if unpickle.load(file, str(path)) != _LEGACY_MAGIC:
            raise ValueError("not torch's magic number")
        unpickle.load(file, str(path))  # the version of the format
        info = unpickle.load(file, str(path))
        found = unpickle.load(file, str(path))
        keys = unpickle.load(file, str(path))
        order = "<" if info.get("little_endian", True) else ">"
        notes: dict[str, unpickle.Storage] = {}
        _collect(found, notes)
        arrays = {}
        for key in keys:
            numel = int(np.frombuffer(file.read(8), f"{order}i8")[0])
            note = notes[str(key)]
            data = file.read(numel * note.dtype.itemsize)
            array = np.frombuffer(data, note.dtype.newbyteorder(order))
            if len(array) != numel:
                raise ValueError("the file ends within a tensor")
            arrays[str(key)] = array
        return unpickle.finish(found, lambda note: _as(arrays[note.key], note))


def _collect(value: Any, notes: dict[str, unpickle.Storage], depth: int = 0) -> None:
    """The storages that the tensors of a tree are views of, by key."""
    if depth > 50:
        raise ValueError("a container that holds itself")
    note = getattr(value, "storage", None)
    if isinstance(note, unpickle.Storage):
        notes[note.key] = note
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            _collect(item, notes, depth + 1)


def _as(array: np.ndarray, note: unpickle.Storage) -> np.ndarray:
    if array.dtype.itemsize != note.dtype.itemsize or len(array) < note.numel:
        raise ValueError(f"the storage {note.key} is not what its tensors say")
    return array.astype(note.dtype, copy=False)


def _read_pickle(path: Path) -> Any:
    def no_storage(note: unpickle.Storage) -> np.ndarray:
        raise ValueError("a torch tensor in a plain pickle")

    with path.open("rb") as file:
        return unpickle.finish(unpickle.load(file, str(path)), no_storage)


def _read_safetensors(path: Path) -> dict[str, Any]:
    load_file = _need("safetensors.numpy", path).load_file
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {**load_file(path), "__metadata__": header.get("__metadata__", {})}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_keras(path: Path) -> dict[str, np.ndarray]:
    """Weights by layer, from `save_weights` or `save`; nested models are opened."""
    h5py = _need("h5py", path)
    tensors: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise UserError(f"{path}: an HDF5 file without Keras' attribute 'layer_names'")
        for layer in _texts(root.attrs["layer_names"]):
            if layer not in root:
                raise UserError(f"{path}: the group {layer!r} of 'layer_names' is missing")
            names = _texts(root[layer].attrs.get("weight_names", ()))
            owners = {n.split("/")[-2] for n in names if "/" in n}
            for name in names:
                if name not in root[layer]:
                    raise UserError(f"{path}: the data set {layer}/{name} is missing")
                # A nested model keeps several layers in its group; a second model in one process
                # gets suffixed weight names, while its groups keep theirs.
                owner = layer if len(owners) < 2 else re.sub(r"_\d+$", "", name.split("/")[-2])
                key = f"{owner}/{name.split('/')[-1].split(':')[0]}"
                if key in tensors:
                    raise UserError(f"{path}: two arrays are called {key!r}")
                array = np.asarray(root[layer][name])
                if array.dtype.kind not in "fiub":
                    raise UserError(f"{path}: {layer}/{name} is no array of numbers")
                tensors[key] = array
    return tensors


def _texts(names: Any) -> list[str]:
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names]


def _need(module: str, path: Path) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise UserError(
            f'{path}: reading it needs a package: pip install "maskrcnn_jax[weights]" ({error})'
        ) from error


def _state_dict(found: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Splits what a file holds into the state dict and the rest."""
    if not isinstance(found, dict):
        return {}, {}
    extra: dict[str, Any] = {}
    for key in _STATE_DICTS:
        if isinstance(found.get(key), dict):
            extra = {str(k): v for k, v in found.items() if k != key}
            found = found[key]
            break
    tensors = {str(k): v for k, v in found.items() if isinstance(v, np.ndarray)}
    extra |= {str(k): v for k, v in found.items() if not isinstance(v, np.ndarray)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): x for name, x in tensors.items()}
    return tensors, extra
