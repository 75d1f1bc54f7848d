"""PyTorch's files: the zip of today and the row of pickles before it."""

import functools
import mmap
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from maskrcnn_jax.weights.pickled import TORCH_DTYPES, Damaged, Refused, Storage
from maskrcnn_jax.weights.unpickle import Global, load

# The first of the pickles in a file of the older kind.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_zip(data: mmap.mmap, archive: zipfile.ZipFile, record: str) -> Any:
    """The object in a zip of torch.save, tensors as unpickle.TorchTensor.

    record: the name of its pickle, '<any folder>/data.pkl'; the storages lie beside it, in data/.
    data: the whole file. Raises Refused and Damaged.
    """
    names = archive.namelist()
    folder = record.removesuffix("data.pkl")
    if len(set(names)) != len(names):
        raise Damaged("the zip holds several entries of one name")
    if f"{folder}constants.pkl" in names:
        raise Refused("a TorchScript program")
    entry = functools.cache(lambda name: _stored(data, archive, folder + name))
    order = "<"
    if f"{folder}byteorder" in names:
        order = {b"little": "<", b"big": ">"}.get(entry("byteorder").tobytes().strip(), "")
        if not order:
            raise Damaged("the entry 'byteorder' is neither 'little' nor 'big'")

    def storage(pid: Any) -> Storage:
        dtype, key, size = _storage_id(pid)
        return Storage(dtype, order, lambda: _whole(entry(f"data/{key}"), size * dtype.itemsize))

    _check_entry(archive, record, len(data))
    with archive.open(record) as file:
        return load(file, len(data), storage)


def _check_entry(archive: zipfile.ZipFile, name: str, size: int) -> zipfile.ZipInfo:
    """The entry of a zip; Damaged unless it is there, stored as it is and inside the file."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise Damaged(f"the zip has no entry {name!r}") from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise Damaged(f"entry {name!r} is compressed or encrypted, which torch.save never does")
    if info.header_offset < 0 or info.header_offset + 30 + info.file_size > size:
        raise Damaged(f"entry {name!r} claims {info.file_size} bytes, more than the file holds")
    return info


def _stored(data: mmap.mmap, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The bytes of a stored entry, not copied; Damaged when their checksum is wrong."""
    info = _check_entry(archive, name, len(data))
    header = data[info.header_offset : info.header_offset + 30]
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if header[:4] != b"PK\x03\x04" or start + info.file_size > len(data):
        raise Damaged(f"entry {name!r} is not where the zip's directory says")
    flat = np.frombuffer(data, np.uint8, info.file_size, start)
    if zlib.crc32(flat) != info.CRC:
        raise Damaged(f"entry {name!r} has a wrong checksum")
    return flat


def _whole(flat: np.ndarray, size: int) -> np.ndarray:
    if flat.size != size:
        raise ValueError(f"its storage has {flat.size} bytes instead of {size}")
    return flat


def _storage_id(pid: Any) -> tuple[np.dtype, str, int]:
    """Element type, key and number of elements of a persistent id."""
    if not isinstance(pid, tuple) or not pid or pid[0] != "storage":
        kind = pid[0] if isinstance(pid, tuple) and pid else pid
        raise Refused(f"a persistent id of kind {str(kind)[:40]!r}")
    _, kind, key, _, size = pid[:5]
    if not isinstance(kind, Global) or kind.name not in TORCH_DTYPES:
        raise Refused(f"a storage of type {kind.name if isinstance(kind, Global) else 'unknown'}")
    if not isinstance(key, str) or not isinstance(size, int) or size < 0:
        raise ValueError("a storage without key or size")
    return np.dtype(TORCH_DTYPES[kind.name]), key, size


def read_legacy(data: mmap.mmap) -> Any:
    """The object in a file of PyTorch before 1.6: pickles of a magic number, of the version, of
    the machine, of the object, of the storages' keys; then each storage's size and bytes.

    data: the whole file, to be read from its start. Raises Refused and Damaged.
    """
    dtypes: dict[str, np.dtype] = {}
    places: dict[str, np.ndarray] = {}
    data.seek(0)
    magic, version, machine = (load(data, len(data)) for _ in range(3))
    if magic != LEGACY_MAGIC or version != 1001 or not isinstance(machine, dict):
        raise Damaged("the header of PyTorch's older format is damaged")
    order = "<" if machine.get("little_endian", True) else ">"

    def storage(pid: Any) -> Storage:
        dtype, key, size = _storage_id(pid)
        if dtypes.setdefault(key, dtype) != dtype:
            raise ValueError(f"storage {key[:40]!r} has two types")
        # A view of a storage, as PyTorch before 0.4 shared them: (key, offset, size).
        view = pid[5] if len(pid) > 5 else None
        first, count = (0, size) if view is None else (int(view[1]), int(view[2]))
        if min(first, count) < 0 or first + count > size:
            raise ValueError(f"a view of storage {key[:40]!r} reaches outside it")
        cut = slice(first * dtype.itemsize, (first + count) * dtype.itemsize)
        return Storage(dtype, order, lambda: _whole(places[key], size * dtype.itemsize)[cut])

    tree = load(data, len(data), storage)
    places.update(_storages(data, load(data, len(data)), dtypes, order))
    return tree


def _storages(
    data: mmap.mmap, keys: Any, dtypes: dict[str, np.dtype], order: str
) -> dict[str, np.ndarray]:
    """The bytes of each storage behind the pickles; Damaged where the file ends before them."""
    if not isinstance(keys, list) or set(map(str, keys)) != set(dtypes):
        raise Damaged("the list of storages does not fit the tensors")
    found, start = {}, data.tell()
    for key in keys:
        head = data[start : start + 8]
        count = struct.unpack(f"{order}q", head)[0] if len(head) == 8 else -1
        size = count * dtypes[key].itemsize
        if count < 0 or start + 8 + size > len(data):
            raise Damaged(f"the file ends before the values of storage {key[:40]!r}")
        found[key] = np.frombuffer(data, np.uint8, size, start + 8)
        start += 8 + size
    return found
