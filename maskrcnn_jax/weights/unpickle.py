"""Pickles of arrays, read without running anything that they name.

A pickle may call whatever it can import. Here every name that it asks for is looked up in a short
table of builders of our own, which make arrays and plain containers; any other name ends the
reading. What a pickle builds are notes of tensors first; `finish` turns them into arrays.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from maskrcnn_jax.errors import UserError

# torch's storage classes, and what an element of them is.
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Storage:
    """A run of numbers in the file, that tensors are views of."""

    __slots__ = ("dtype", "key", "numel")

    def __init__(self, dtype: Any, key: str, numel: int):
        self.dtype, self.key, self.numel = np.dtype(dtype), str(key), int(numel)


class _Tensor:
    """A view of a storage."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any):
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        self.storage, self.offset = storage, int(offset)
        self.shape, self.strides = tuple(map(int, shape)), tuple(map(int, strides))

    def read(self, storage: np.ndarray) -> np.ndarray:
        """The array. Raises ValueError where the view leaves its storage."""
        if len(self.shape) != len(self.strides) or min((*self.shape, self.offset), default=0) < 0:
            raise ValueError(f"a tensor of shape {self.shape} with strides {self.strides}")
        if 0 in self.shape:
            return np.zeros(self.shape, storage.dtype)
        last = self.offset
        for n, stride in zip(self.shape, self.strides, strict=True):
            if stride < 0:
                raise ValueError(f"a tensor with the stride {stride}")
            last += (n - 1) * stride
        if last >= len(storage):
            raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage")
        # A stride of 0 repeats an element: no file needs more of that than its own size, by far.
        if 0 in self.strides and np.prod([float(n) for n in self.shape]) > 1e8:
            raise ValueError(f"an expanded tensor of shape {self.shape}")
        strides = [s * storage.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(
            storage[self.offset :], self.shape, strides, writeable=False
        )
        return np.ascontiguousarray(view).reshape(self.shape)


class _Dtype:
    """numpy.dtype, as a pickle makes it: a code, then a state with the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any):
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def read(self) -> np.dtype:
        """The type. Raises ValueError unless it is one of plain numbers."""
        kind = np.dtype(self.code)
        if kind.kind not in "fiub" or kind.shape:
            raise ValueError(f"an array of {self.code!r}, not of numbers")
        return kind.newbyteorder(self.order if self.order in "<>" else "=")


class _Array:
    """numpy.ndarray, as a pickle makes it: empty, then a state with its bytes."""

    __slots__ = ("state",)

    def __init__(self, *_: Any):
        self.state = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def read(self) -> np.ndarray:
        """The array. Raises ValueError or TypeError if its parts do not fit."""
        _, shape, dtype, by_columns, data = self.state
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without a type")
        # Python 2 wrote bytes as text.
        data = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(data, dtype.read())
        return flat.reshape(shape, order="F" if by_columns else "C")


class _Builder:
    """A callable that a pickle can call, but not change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable):
        object.__setattr__(self, "_make", make)

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle sets {name!r} of a name")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle gives a state to a name")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> _Array:
    """How protocol 5 writes an array."""
    array = _Array()
    array.state = (1, shape, dtype, order == "F", bytes(data))
    return array


def _scalar(dtype: Any, data: Any = b"") -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.read())[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes the bytes of Python 3."""
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


_BUILDERS = {
    ("collections", "OrderedDict"): lambda items=(): _Dict(items),
    ("torch._utils", "_rebuild_tensor_v2"): lambda *a: _Tensor(*a[:4]),
    ("torch._utils", "_rebuild_tensor"): lambda *a: _Tensor(*a[:4]),
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): lambda items=(): tuple(items),
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("builtins", "set"): lambda items=(): set(items),
    ("__builtin__", "set"): lambda items=(): set(items),
    ("_codecs", "encode"): _encode,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    **{
        (f"numpy.{core}.multiarray", name): make
        for core in ("core", "_core")
        for name, make in (("_reconstruct", lambda *_: _Array()), ("scalar", _scalar))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Dict(dict):
    """An OrderedDict whose attributes (torch's `_metadata`) are not kept."""

    def __setstate__(self, state: Any) -> None:
        """Nothing: the state is of no use here."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, name: str):
        super().__init__(file, encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        """One of our builders, whatever is asked for."""
        try:
            return _Builder(_BUILDERS[module, name])
        except KeyError:
            raise UserError(
                f"{self._name}: holds {f'{module}.{name}'!r}, which is no tensor and no plain "
                "container; nothing of the file was executed. Save the state dict alone, as "
                "tensors, or .safetensors, with the program that wrote it"
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        """torch names its storages so: ('storage', class, key, device, elements, ...)."""
        kind, storage_class, key, _, numel, *view = pid
        known = isinstance(storage_class, _Builder) and storage_class._make in STORAGES.values()
        if kind != "storage" or not known or any(v is not None for v in view):
            raise pickle.UnpicklingError(f"an unknown storage {kind!r}")
        return Storage(storage_class._make, key, numel)


def load(file: io.BufferedIOBase, name: str) -> Any:
    """Reads one pickle: containers, numbers, text, and notes of tensors for `finish`.

    name: of the file, for messages. Raises UserError on a name that is not allowed; on damage what
    `pickle` raises, which may be any exception.
    """
    return _Unpickler(file, name).load()


def finish(value: Any, storage: Callable[[Storage], np.ndarray]) -> Any:
    """Replaces the notes of tensors in a tree by arrays.

    storage: reads the elements of a torch storage, one-dimensional. Raises ValueError where a
    tensor does not fit its storage.
    """
    return _finish(value, storage, ())


def _finish(value: Any, storage: Callable[[Storage], np.ndarray], above: tuple[int, ...]) -> Any:
    if isinstance(value, _Tensor):
        return value.read(storage(value.storage))
    if isinstance(value, _Array):
        return value.read()
    if isinstance(value, (_Dtype, _Builder, Storage)):
        return str(type(value).__name__)
    if id(value) in above or len(above) > 50:
        raise ValueError("a container that holds itself")
    inside = (*above, id(value))
    if isinstance(value, dict):
        return {k: _finish(v, storage, inside) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_finish(v, storage, inside) for v in value)
    return value
