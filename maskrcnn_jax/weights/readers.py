"""Files of weights: what is in them, whoever wrote them, and without the software that wrote them.

The kind is told by the content, never by the name of the file. Nothing in a file is executed.
"""

import io
import mmap
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import array_files, keras_file, torch_file, unpickle
from maskrcnn_jax.weights.pickled import Damaged, NumpyArray, NumpyType, Refused, TorchTensor

# Keys under which training programs keep the weights beside other things, best first.
WRAPPERS = ("model", "state_dict", "model_state_dict", "params_ema", "blobs")

# A state dict lies at most so deep in such wrappers.
DEEPEST = 8

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"Rar!": "rar",
    b"7z\xbc\xaf": "7z",
}

AGAIN = "download or copy it again"


@dataclass(frozen=True)
class Source:
    """The content of a file of weights.

    format: 'pkl' (plain pickle), 'pth' (PyTorch), 'safetensors', 'h5' (Keras) or 'npz'. tensors:
    the state dict under its own names, arrays in C order and native byte order (some may not be
    written to). extra: what stands beside the tensors and is plain: texts, numbers, containers.
    """

    path: Path
    format: str
    tensors: dict[str, np.ndarray]
    extra: dict[str, Any] = field(default_factory=dict)


def read(path: str | Path) -> Source:
    """Reads a file of weights.

    Knows PyTorch's files (zip and the older row of pickles), pickles of NumPy arrays (Detectron2,
    Caffe2), safetensors, HDF5 of Keras and .npz. Wrappers such as {'model': ...} or {'state_dict':
    ...} are opened, a leading 'module.' of all names is taken off. Raises UserError, which names
    the file, what is wrong with it and what to do, for everything else: missing and damaged files,
    other kinds of file, and pickles that hold more than tensors and plain containers.
    """
    path = Path(path)
    try:
        if not path.is_file():
            what = "is a folder; name the file of weights in it"
            raise UserError(f"{path}: {what if path.is_dir() else 'there is no such file'}")
        size = path.stat().st_size
        if size == 0:
            raise UserError(f"{path}: is empty; {AGAIN}")
        with path.open("rb") as file:
            head = file.read(4096)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _refuse_other_kinds(path, head, size)
        format, tensors, extra = _read(path, head, data)
    except Refused as error:
        raise UserError(
            f"{path}: refused: it holds '{error}', but weights are tensors in plain containers. "
            "Nothing of it was executed. If you trust it, open it with the software that wrote it "
            "and save the weights alone: torch.save({'state_dict': model.state_dict()}, 'w.pth')"
        ) from error
    except Damaged as error:
        raise UserError(f"{path}: cannot be read: {error}. If it is damaged, {AGAIN}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror or error}") from error
    except MemoryError as error:
        raise UserError(f"{path}: needs more memory than this machine has") from error
    except RecursionError as error:
        raise UserError(f"{path}: its containers are nested too deep for weights") from error
    if not tensors:
        raise UserError(f"{path}: there are no tensors in it; is it a file of weights?")
    return Source(path, format, tensors, extra)


def _refuse_other_kinds(path: Path, head: bytes, size: int) -> None:
    """UserError for what people often have under the name of a file of weights."""
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: is a git-LFS pointer of {size} bytes, not the weights; run 'git lfs pull' "
            "in its repository, or download the file itself"
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise UserError(
            f"{path}: is a web page (HTML or XML), not weights: the download got an error page; "
            "look into it with a text editor and download it again"
        )
    for start, name in COMPRESSED.items():
        if head.startswith(start):
            raise UserError(f"{path}: is compressed with {name}; unpack it first")
    if head[257:262] == b"ustar" or tarfile.is_tarfile(io.BytesIO(head)):
        raise UserError(
            f"{path}: is a tar archive{_cut_tar(path)}; if it is PyTorch's file format of 2017, "
            "load it with torch.load and save it again with torch.save, else unpack it"
        )


def _cut_tar(path: Path) -> str:
    """' that is cut short' where the members of a tar reach beyond its end."""
    try:
        with tarfile.open(path, "r:") as archive:
            ends = [member.offset_data + member.size for member in archive.getmembers()]
    except (tarfile.TarError, OSError, ValueError):
        ends = [path.stat().st_size + 1]
    return " that is cut short" if max(ends, default=0) > path.stat().st_size else ""


def _read(path: Path, head: bytes, data: mmap.mmap) -> tuple[str, dict, dict]:
    """(format, tensors, extra) of a file whose kind its first bytes tell."""
    # HDF5 allows bytes of the user's before it, in a block of 512, 1024, 2048 ...
    if any(head[n : n + 8] == b"\x89HDF\r\n\x1a\n" for n in (0, 512, 1024, 2048)):
        return "h5", *keras_file.read_h5(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_zip(path, data)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "safetensors", *array_files.read_safetensors(data)
    try:
        tree = unpickle.load(data, len(data))
    except Damaged as error:
        if head.startswith(b"\x80"):
            raise Damaged(f"the pickle in it is damaged or cut short ({error})") from error
        raise Damaged(
            "it is none of the known kinds (PyTorch, pickle, safetensors, Keras HDF5, npz)"
        ) from error
    if isinstance(tree, int) and tree == torch_file.LEGACY_MAGIC:
        return "pth", *_state_dict(torch_file.read_legacy(data), len(data))
    return "pkl", *_state_dict(tree, len(data))


def _read_zip(path: Path, data: mmap.mmap) -> tuple[str, dict, dict]:
    """(format, tensors, extra) of a zip: PyTorch's or NumPy's."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise Damaged(f"the zip is cut short: it has no directory at its end ({error})") from error
    with archive:
        names = archive.namelist()
        records = [
            n for n in names if n == "data.pkl" or (n.endswith("/data.pkl") and n.count("/") == 1)
        ]
        if len(records) == 1:
            try:
                tree = torch_file.read_zip(data, archive, records[0])
            except (zipfile.BadZipFile, EOFError, ValueError, OverflowError) as error:
                raise Damaged(f"the zip is damaged ({error})") from error
            return "pth", *_state_dict(tree, len(data))
        if names and all(name.endswith(".npy") for name in names):
            return "npz", *array_files.read_npz(path, archive)
        if "model.weights.h5" in names:
            raise Damaged("it is a .keras file of Keras 3; save its weights as HDF5 with Keras 2")
    raise Damaged("it is a zip, but neither PyTorch's nor NumPy's; unpack it")


def _state_dict(tree: Any, file_size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, what stands beside them) of an unpickled file, wrappers opened."""
    extra: dict[str, Any] = {}
    done: dict[int, Any] = {}
    for _ in range(DEEPEST):
        if not isinstance(tree, dict) or _holds_tensors(tree):
            break
        inside = [key for key in WRAPPERS if isinstance(tree.get(key), dict)]
        inside += [key for key, value in tree.items() if _holds_tensors(value)]
        if not inside:
            break
        extra |= {key: _plain(v, done) for key, v in tree.items() if key not in WRAPPERS}
        tree = tree[inside[0]]
    if not isinstance(tree, dict) or not _holds_tensors(tree):
        raise Damaged(f"it holds no dict of tensors, but {_brief(tree)}")
    rows = {key: v for key, v in tree.items() if isinstance(v, TorchTensor | NumpyArray)}
    for key in rows:
        if not isinstance(key, str):
            raise Damaged(f"a tensor's name is {str(key)[:40]!r}, not a text")
    extra |= {key: _plain(v, done) for key, v in tree.items() if key not in rows}
    array_files.check_unfolding(sum(row.nbytes() for row in rows.values()), file_size)
    tensors = {}
    for name, row in rows.items():
        try:
            tensors[name] = row.array()
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
            raise Damaged(f"tensor {name[:100]!r}: {str(error)[:200]}") from error
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    return tensors, {str(key): value for key, value in extra.items() if value is not None}


def _holds_tensors(tree: Any) -> bool:
    return isinstance(tree, dict) and any(
        isinstance(value, TorchTensor | NumpyArray) for value in tree.values()
    )


def _brief(tree: Any) -> str:
    if not isinstance(tree, dict):
        return f"a {type(tree).__name__}"
    keys = ", ".join(ascii(key)[:40] for key in list(tree)[:8])
    return f"a dict with the keys {keys}" if keys else "an empty dict"


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """A leftover without tensors, which become None, as does a container inside itself.

    done: results by identity, so that shared containers are walked through once.
    """
    if isinstance(value, TorchTensor | NumpyArray | NumpyType):
        return None
    if isinstance(value, unpickle.Global):
        return value.name
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        done[id(value)] = None
        if isinstance(value, dict):
            done[id(value)] = {key: _plain(v, done) for key, v in value.items()}
        else:
            done[id(value)] = type(value)(_plain(v, done) for v in value)
    return done[id(value)]
