"""Tensors as pickles describe them, kept as descriptions until their values are wanted."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

# Element types that PyTorch stores, by the names of its storage classes and of its dtypes.
TORCH_DTYPES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
    "torch.storage.UntypedStorage": np.uint8,
    "torch.float64": np.float64,
    "torch.float32": np.float32,
    "torch.float16": np.float16,
    "torch.bfloat16": ml_dtypes.bfloat16,
    "torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "torch.float8_e5m2": ml_dtypes.float8_e5m2,
    "torch.uint64": np.uint64,
    "torch.uint32": np.uint32,
    "torch.uint16": np.uint16,
    "torch.int64": np.int64,
    "torch.int32": np.int32,
    "torch.int16": np.int16,
    "torch.int8": np.int8,
    "torch.uint8": np.uint8,
    "torch.bool": np.bool_,
}


class Refused(Exception):
    """A pickle asks for something that weights have no need of; the text names it."""

    def __init__(self, what: str):
        super().__init__(ascii(what)[1:-1][:160])


class Damaged(Exception):
    """Bytes that cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements that tensors look into.

    read() gives its bytes; in PyTorch's older files they stand behind the pickle, so it works only
    after the whole file was walked through. order: '<' or '>', of elements of several bytes.
    """

    dtype: np.dtype
    order: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """A view into a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def nbytes(self) -> int:
        """Bytes of the tensor when it stands alone."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        """The tensor as an array of its own; ValueError where it reaches outside its storage."""
        sizes = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or len(self.shape) > 32 or min(sizes) < 0:
            raise ValueError(f"its shape is {self.shape} and its strides are {self.strides}")
        # As whole numbers first: bfloat16 knows no byte order.
        flat = self.storage.read().view(f"{self.storage.order}u{self.dtype.itemsize}")
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.dtype)
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((n - 1) * step for n, step in steps)
        if last >= flat.size:
            raise ValueError(f"it reaches element {last} of a storage of {flat.size}")
        strides = [step * flat.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, strides, writeable=False
        )
        own = np.array(view, flat.dtype.newbyteorder("="), order="C")
        return np.asarray(own != 0) if self.dtype == np.bool_ else own.view(self.dtype)


class NumpyType:
    """A NumPy dtype in the making: the pickle names its kind first and its byte order later."""

    __slots__ = ("code", "order")

    def __init__(self, code: str):
        self.code, self.order = code, "|"

    def dtype(self) -> np.dtype:
        """The finished dtype; Refused unless its elements are numbers or truth values."""
        if not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|bool)", self.code):
            raise Refused(f"an array of NumPy's type {self.code[:40]!r}")
        plain = np.dtype(self.code)
        return plain if self.order == "|" else plain.newbyteorder(self.order)


class NumpyArray:
    """A NumPy array in the making: an empty one first, shape and bytes later."""

    __slots__ = ("type", "shape", "fortran", "data")

    def __init__(
        self,
        type: NumpyType | None = None,
        shape: tuple = (),
        fortran: bool = False,
        data: bytes | str = b"",
    ):
        self.type, self.shape, self.fortran, self.data = type, shape, fortran, data

    def nbytes(self) -> int:
        """Bytes of the array."""
        return len(self.data)

    def array(self) -> np.ndarray:
        """The finished array; ValueError where shape and bytes disagree."""
        if self.type is None:
            raise ValueError("an array without elements")
        # Python 2 wrote bytes as text, one character each.
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        flat = np.frombuffer(data, self.type.dtype()) if data else np.zeros(0, self.type.dtype())
        if any(not isinstance(n, int) or n < 0 for n in self.shape):
            raise ValueError(f"shape {self.shape}")
        if math.prod(self.shape) != flat.size:
            raise ValueError(f"shape {self.shape}, but {flat.size} elements")
        array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(self.shape)


Tensor = TorchTensor | NumpyArray
