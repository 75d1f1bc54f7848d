"""Safetensors and NumPy's archives."""

import io
import json
import math
import mmap
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from maskrcnn_jax.weights.pickled import Damaged, Refused

SAFETENSORS_DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "BOOL": np.bool_},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2},
}

# The header of a safetensors file is at most so long (a rule of the format).
LONGEST_HEADER = 100_000_000

# What compressed arrays may unfold to: real weights shrink little, zeros very much.
UNFOLD_BYTES, UNFOLD_RATIO = 256 * 2**20, 16


def check_unfolding(nbytes: int, file_size: int) -> None:
    """Raises Damaged when a file claims far more values than one of its size holds."""
    if nbytes > UNFOLD_BYTES + UNFOLD_RATIO * file_size:
        raise Damaged(f"it claims {nbytes} bytes of values, but is {file_size} bytes long")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands there twice")
    return out


def read_safetensors(data: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, metadata) of a safetensors file: the length of a JSON header, the header, values.

    Raises Damaged unless the tensors fill the file without gap or overlap, as the format demands.
    """
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, LONGEST_HEADER):
        raise Damaged(f"its header claims {length} bytes, more than the file holds")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_no_twins)
        metadata = header.pop("__metadata__", {})
        rows = [
            (*row["data_offsets"], name, row["dtype"], row["shape"]) for name, row in header.items()
        ]
        rows.sort()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its header cannot be read: {str(error)[:100]}") from error
    tensors, position = {}, 0
    for start, end, name, kind, shape in rows:
        if kind not in SAFETENSORS_DTYPES:
            raise Damaged(f"tensor {name!r} has the unknown type {str(kind)[:20]!r}")
        if not all(type(n) is int and n >= 0 for n in (start, end, *shape)):
            raise Damaged(f"tensor {name!r} has a place or shape that is no whole number")
        dtype = np.dtype(SAFETENSORS_DTYPES[kind])
        if start != position or end - start != math.prod(shape) * dtype.itemsize:
            raise Damaged(f"the values of tensor {name!r} do not fit its shape {shape}")
        if 8 + length + end > len(data):
            raise Damaged(f"the file ends before the values of tensor {name!r}")
        flat = np.frombuffer(data, np.uint8, end - start, 8 + length + start)
        tensors[name] = flat.copy().view(dtype).reshape(shape)
        position = end
    if 8 + length + position != len(data):
        raise Damaged(f"{len(data) - 8 - length - position} bytes stand behind the last tensor")
    return tensors, metadata


def read_npz(path: Path, archive: zipfile.ZipFile) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of numbers, texts) of a NumPy archive. Pickled objects in it are refused."""
    infos = archive.infolist()
    if len({info.filename for info in infos}) != len(infos):
        raise Damaged("the zip holds several entries of one name")
    check_unfolding(sum(info.file_size for info in infos), path.stat().st_size)
    tensors, extra = {}, {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        try:
            array = _npy(archive.read(info))
        except (
            ValueError,
            EOFError,
            OSError,
            zipfile.BadZipFile,
            RuntimeError,
            zlib.error,
        ) as error:
            raise Damaged(f"array {name!r}: {str(error)[:200]}") from error
        if array.dtype.kind in "biufc":
            tensors[name] = array
        else:
            extra[name] = array.tolist()
    return tensors, extra


def _npy(data: bytes) -> np.ndarray:
    """An array of NumPy's own format, not copied; ValueError for a damaged one."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of NumPy's format holds no plain numbers")
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise Refused(f"an array of NumPy's type {dtype}")
    if dtype.kind not in "biufcUS":
        raise ValueError(f"its type {dtype} is not one of numbers")
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"its bytes do not fit its shape {shape}")
    flat = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    array = flat.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype.newbyteorder("=")).reshape(shape)
