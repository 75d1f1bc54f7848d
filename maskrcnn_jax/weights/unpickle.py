"""Pickles of weights, read without executing anything that they ask for.

A pickle is a program for a small stack machine. Two things make it dangerous: it names any function
of any module, and it calls them. Here a name becomes an inert `Global`, only names of ALLOWED
exist, and a call reaches only the builders below, which make arrays and plain containers.
"""

import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn_jax.weights.pickled import (
    TORCH_DTYPES,
    Damaged,
    NumpyArray,
    NumpyType,
    Refused,
    Storage,
    TorchTensor,
)


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle refers to, 'module.name'. Nothing was imported for it."""

    name: str


def _dictionary(pairs: Any = ()) -> dict:
    """collections.OrderedDict or Counter, as a plain dict."""
    out = {}
    for key, value in pairs.items() if type(pairs) is dict else pairs:
        out[_key(key)] = value
    return out


def _key(key: Any) -> Any:
    """A key of a dict or a member of a set: hashing deeper ones could exhaust the C stack."""
    if key is None or isinstance(key, str | int | float):
        return key
    raise Refused(f"a {type(key).__name__} as a key")


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> TorchTensor:
    """torch._utils._rebuild_tensor and _v2 (whose further arguments concern gradients)."""
    return TorchTensor(storage, offset, tuple(shape), tuple(strides), storage.dtype)


def _tensor_v3(
    storage: Storage,
    offset: int,
    shape: tuple,
    strides: tuple,
    _: Any,
    __: Any,
    dtype: Global,
    *___: Any,
) -> TorchTensor:
    """torch._utils._rebuild_tensor_v3: the element type stands with the tensor."""
    kind = np.dtype(TORCH_DTYPES[dtype.name])
    return TorchTensor(storage, offset, tuple(shape), tuple(strides), kind)


def _parameter(tensor: TorchTensor, *_: Any) -> TorchTensor:
    """torch._utils._rebuild_parameter: a parameter is its tensor."""
    return tensor


def _typed_tensor(rebuild: Global, _: Any, arguments: tuple, __: Any) -> TorchTensor:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes of its own, which are left."""
    return BUILDERS[rebuild.name](*arguments)


def _scalar(type: NumpyType, data: bytes | str = b"") -> NumpyArray:
    return NumpyArray(type, (), False, data)


def _from_buffer(data: bytes, type: NumpyType, shape: tuple, order: str) -> NumpyArray:
    return NumpyArray(type, shape, order == "F", bytes(data))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode: how Python 3 writes bytes in protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"bytes encoded as {encoding[:40]!r}")
    return text.encode("latin1")


def _name(kind: str, *_: Any) -> str:
    return str(kind)


# What a call of a name does here; all other names that are allowed can only be mentioned.
BUILDERS: dict[str, Callable] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": tuple,
    "torch.device": _name,
    "numpy.dtype": lambda code, *_: NumpyType(code),
}
for numpy_core in ("numpy.core", "numpy._core"):
    BUILDERS[f"{numpy_core}.multiarray._reconstruct"] = lambda *_: NumpyArray()
    BUILDERS[f"{numpy_core}.multiarray.scalar"] = _scalar
    BUILDERS[f"{numpy_core}.numeric._frombuffer"] = _from_buffer
for builtins in ("builtins", "__builtin__"):
    BUILDERS[f"{builtins}.set"] = lambda items=(): [_key(item) for item in items]
    BUILDERS[f"{builtins}.frozenset"] = BUILDERS[f"{builtins}.set"]
    BUILDERS[f"{builtins}.complex"] = complex

ALLOWED = {*BUILDERS, *TORCH_DTYPES, "numpy.ndarray", "torch.Tensor"}


# Operations that only move plain values, taken over from the standard library. Left out for good:
# the extension registry, buffers from outside the stream, persistent ids as text, objects of
# Python 2's classes.
PLAIN = """
    PROTO FRAME STOP MARK POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT GLOBAL STACK_GLOBAL INST BINPERSID
"""


class Unpickler(pickle._Unpickler):
    """The standard library's stack machine, the one written in Python (its memo cannot be made to
    grow beyond the file), with every operation that calls or sets attributes replaced."""

    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in PLAIN.split()
    }

    def __init__(self, file: Any, storage: Callable[[Any], Storage] | None, budget: int):
        """file: has read and readline. storage: answers persistent ids. budget: elements that
        builders may copy, against small files that unfold to large containers."""
        # Texts of Python 2 are bytes; latin1 keeps each byte as one character.
        super().__init__(file, encoding="latin1")
        self._storage, self._budget = storage, budget

    def find_class(self, module: str, name: str) -> Global:
        """The inert name, or Refused."""
        if f"{module}.{name}" not in ALLOWED:
            raise Refused(f"{module}.{name}")
        return Global(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a persistent id of PyTorch stands for."""
        if self._storage is None:
            raise Refused("a reference to something outside the pickle")
        return self._storage(pid)

    def build(self, called: Any, arguments: Any) -> Any:
        """What a call gives; Refused unless a builder stands for the called name."""
        builder = BUILDERS.get(called.name) if isinstance(called, Global) else None
        if builder is None or type(arguments) is not tuple:
            raise Refused(f"a call of {called.name if isinstance(called, Global) else 'a value'}")
        self._budget -= sum(len(a) for a in arguments if isinstance(a, str | bytes | list | dict))
        if self._budget < 0:
            raise ValueError("it unfolds to far more than the file holds")
        return builder(*arguments)

    def load_reduce(self) -> None:
        """A call."""
        arguments = self.stack.pop()
        self.stack[-1] = self.build(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        """An object of a class, made without calling the class."""
        arguments = self.stack.pop()
        self.stack[-1] = self.build(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        """The same with keywords, which no builder knows."""
        raise Refused("an object built with keywords")

    def _instantiate(self, called: Any, arguments: Any) -> None:
        self.append(self.build(called, tuple(arguments)))

    def load_build(self) -> None:
        """The state of an object: that of NumPy's types and arrays. Attributes that PyTorch hangs
        on dicts (the versions of modules) and on tensors are left; all else is refused."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, NumpyType):
            made.order = state[1]
        elif isinstance(made, NumpyArray):
            _, made.shape, made.type, made.fortran, made.data = state
            made.type.dtype()
        elif not isinstance(made, dict | TorchTensor):
            raise Refused(f"attributes of a {type(made).__name__}")

    def load_setitems(self) -> None:
        """Entries of a dict."""
        items = self.pop_mark()
        made = self.stack[-1]
        if type(made) is not dict:
            raise pickle.UnpicklingError("entries of something that is no dict")
        made.update(_dictionary(zip(items[::2], items[1::2], strict=True)))

    def load_setitem(self) -> None:
        """One entry of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise pickle.UnpicklingError("an entry of something that is no dict")
        self.stack[-1][_key(key)] = value

    def load_dict(self) -> None:
        """A dict of protocol 0."""
        items = self.pop_mark()
        self.append(_dictionary(zip(items[::2], items[1::2], strict=True)))

    def load_frozenset(self) -> None:
        """A frozen set, as a list: nothing of deep structure is ever hashed."""
        self.append(self.pop_mark())

    def load_bytearray8(self) -> None:
        """Bytes; the standard library reserves them before it looks whether they are there."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(min(size, sys.maxsize)))

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.EMPTY_SET[0]: pickle._Unpickler.load_empty_list,
        pickle.ADDITEMS[0]: pickle._Unpickler.load_appends,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def load(file: Any, size: int, storage: Callable[[Any], Storage] | None = None) -> Any:
    """Reads one pickle: plain values, dicts, lists (also for sets), tuples, Global and Tensor.

    file: has read(n) and readline(), and stands at the pickle; afterwards it stands behind it.
    size: bytes of the whole file. storage: answers PyTorch's persistent ids. Raises Refused for
    names, calls and attributes beyond those of weights, and Damaged for all that is no pickle.
    """
    try:
        return Unpickler(file, storage, 4 * size + 2**20).load()
    except Refused:
        raise
    # A damaged stream makes any operation fail in any way.
    except Exception as error:
        raise Damaged(f"{type(error).__name__}: {ascii(str(error))[1:-1][:200]}") from error
