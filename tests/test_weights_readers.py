"""Files of weights: what is read, and that nothing else ever happens.

The files are written here by other means than the reader's: the standard pickler with classes that
name torch's, h5py, safetensors, NumPy.
"""

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import readers

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.normal(size=(3, 4)).astype(np.float32),
    "a.bias": np.arange(5, dtype=np.int64),
    "b.half": RNG.normal(size=(2, 2, 2)).astype(np.float16),
    "b.count": np.array(7, np.int64),
    "c.mask": np.array([True, False]),
}


class Named:
    """Pickles as a call of `module.name(*args)`, though no such module is there."""

    def __init__(self, module, name, args, state=None):
        self.function = types.FunctionType((lambda: None).__code__, {}, name)
        self.function.__module__, self.function.__qualname__ = module, name
        self.args, self.state = args, state

    def __reduce__(self):
        return (self.function, self.args, *(() if self.state is None else (self.state,)))


class TorchPickler(pickle._Pickler):
    """The pure Python pickler, which may be told to name what is not there."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_named(self, function):
        name = f"{function.__module__}\n{function.__qualname__}\n"
        self.write(pickle.GLOBAL + name.encode())
        self.memoize(function)

    dispatch[types.FunctionType] = save_named

    def persistent_id(self, obj):
        return obj.pid if hasattr(obj, "pid") else None


TORCH_NAMES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


def storage_type(dtype):
    kind = types.FunctionType((lambda: None).__code__, {}, TORCH_NAMES[dtype.name])
    kind.__module__, kind.__qualname__ = "torch", TORCH_NAMES[dtype.name]
    return kind


def tensor(key, x, shape=None, strides=None, offset=0, numel=None, legacy=False):
    pid = ("storage", storage_type(x.dtype), key, "cpu", numel or x.size)
    storage = types.SimpleNamespace(pid=(*pid, None) if legacy else pid)
    strides = strides or tuple(s // x.itemsize for s in x.strides)
    hooks = collections.OrderedDict()
    args = (storage, offset, shape or x.shape, strides, False, hooks)
    return Named("torch._utils", "_rebuild_tensor_v2", args)


def pickled(value):
    out = io.BytesIO()
    TorchPickler(out, protocol=2).dump(value)
    return out.getvalue()


def write_zip(path, value, storages, order=b"little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled(value))
        archive.writestr("model/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
    return path


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        np.testing.assert_array_equal(found[name], x)


def torch_zip(path, arrays=ARRAYS):
    value = {n: tensor(str(i), x) for i, (n, x) in enumerate(arrays.items())}
    value = {"model": value, "iteration": 9}
    return write_zip(path, value, {str(i): x.tobytes() for i, x in enumerate(arrays.values())})


def torch_legacy(path, arrays=ARRAYS):
    value = {f"module.{n}": tensor(n, x, legacy=True) for n, x in arrays.items()}
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            file.write(pickle.dumps(part, 2))
        file.write(pickled(value))
        file.write(pickle.dumps(list(arrays), 2))
        for x in arrays.values():
            file.write(struct.pack("<q", x.size) + x.tobytes())
    return path


def detectron2_pkl(path, protocol=3):
    path.write_bytes(pickle.dumps({"model": ARRAYS, "__author__": "x"}, protocol))
    return path


def keras_h5(path, suffix="", root=""):
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        group.attrs["layer_names"] = [b"input", b"conv1", b"rpn_model"]
        group.create_group("input").attrs["weight_names"] = np.zeros(0, "S1")
        nested = [b"rpn_conv_shared/kernel:0", b"rpn_bbox_pred/bias:0"]
        for layer, names in {
            "conv1": [f"conv1{suffix}/kernel:0".encode()],
            "rpn_model": nested,
        }.items():
            group.create_group(layer).attrs["weight_names"] = names
            for name in names:
                group[layer][name.decode()] = np.full(2, len(name), np.float32)
    return path


def test_torch_zip(tmp_path):
    source = readers.read(torch_zip(tmp_path / "x.anything"))
    assert source.format == "pth" and source.extra == {"iteration": 9}
    same(source.tensors, ARRAYS)


def test_views_share_a_storage(tmp_path):
    x = np.arange(24, dtype=np.float32)
    value = {
        "rows": tensor("0", x, (4, 6), (6, 1)),
        "transposed": tensor("0", x, (6, 4), (1, 6)),
        "part": tensor("0", x, (3,), (2,), offset=18),
        "repeated": tensor("0", x, (3, 2), (0, 1), offset=1),
    }
    found = readers.read(write_zip(tmp_path / "x.pth", value, {"0": x.tobytes()})).tensors
    grid = x.reshape(4, 6)
    same(
        found,
        {
            "rows": grid,
            "transposed": grid.T,
            "part": x[18:24:2],
            "repeated": np.tile(x[1:3], (3, 1)),
        },
    )


def test_bfloat16_and_big_endian(tmp_path):
    x = RNG.normal(size=6).astype(ml_dtypes.bfloat16)
    path = write_zip(tmp_path / "x.pth", {"x": tensor("0", x)}, {"0": x.tobytes()})
    same(readers.read(path).tensors, {"x": x})
    y = np.arange(3, dtype=np.float32)
    storages = {"0": y.astype(">f4").tobytes()}
    same(readers.read(write_zip(path, {"y": tensor("0", y)}, storages, b"big")).tensors, {"y": y})


def test_torch_before_1_6(tmp_path):
    same(readers.read(torch_legacy(tmp_path / "x.pth")).tensors, ARRAYS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_detectron2_pickle(tmp_path, protocol):
    source = readers.read(detectron2_pkl(tmp_path / "x.pkl", protocol))
    assert source.format == "pkl" and source.extra == {"__author__": "x"}
    same(source.tensors, ARRAYS)


def test_pickle_of_python_2(tmp_path):
    # As Caffe2's files have it: bytes are text, which Python 3 reads as latin1.
    data = np.float32([1.5, -2]).tobytes().decode("latin1")
    dtype = Named("numpy", "dtype", ("f4", 0, 1), (3, "<", None, None, None, -1, -1, 0))
    array = Named(
        "numpy.core.multiarray",
        "_reconstruct",
        (np.ndarray, (0,), "b"),
        (1, (2,), dtype, False, data),
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickled({"blobs": {"conv1_w": array}}))
    same(readers.read(path).tensors, {"conv1_w": np.float32([1.5, -2])})


def test_safetensors_and_npz(tmp_path):
    save_file(ARRAYS, tmp_path / "x.bin", {"format": "pt"})
    source = readers.read(tmp_path / "x.bin")
    assert source.format == "safetensors" and source.extra == {"format": "pt"}
    same(source.tensors, ARRAYS)
    np.savez(tmp_path / "x.npz", **ARRAYS)
    same(readers.read(tmp_path / "x.npz").tensors, ARRAYS)


@pytest.mark.parametrize(("suffix", "root"), [("", ""), ("_1", ""), ("", "model_weights")])
def test_keras(tmp_path, suffix, root):
    found = readers.read(keras_h5(tmp_path / "x.h5", suffix, root)).tensors
    assert list(found) == ["conv1/kernel", "rpn_conv_shared/kernel", "rpn_bbox_pred/bias"]


def test_keras_with_missing_parts(tmp_path):
    path = keras_h5(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        del file["conv1"]["conv1"]
    with pytest.raises(UserError, match=r"x\.h5: .*weight 'conv1/kernel:0', which is not there"):
        readers.read(path)
    with h5py.File(path, "a") as file:
        del file["conv1"]
    with pytest.raises(UserError, match="the group 'conv1'"):
        readers.read(path)
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"]
    with pytest.raises(UserError, match="'layer_names'"):
        readers.read(path)


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        ({"shape": (5,), "strides": (1,)}, "reaches element 4 of a storage of 4"),
        ({"shape": (2, 2), "strides": (2, -1)}, r"strides are \(2, -1\)"),
        ({"shape": (2,), "strides": (1,), "offset": -1}, "shape"),
        ({"shape": (10**9, 10**3), "strides": (0, 0)}, "claims 4000000000000 bytes"),
        ({"numel": 10**12}, "16 bytes instead of"),
    ],
)
def test_views_that_leave_their_storage(tmp_path, view, reason):
    x = np.arange(4, dtype=np.float32)
    path = write_zip(tmp_path / "x.pth", {"x": tensor("0", x, **view)}, {"0": x.tobytes()})
    with pytest.raises(UserError, match=reason):
        readers.read(path)


def test_a_compressed_zip_is_no_torch_file(tmp_path):
    x = np.zeros(10**6, np.float32)
    path = write_zip(
        tmp_path / "x.pth",
        {"x": tensor("0", x)},
        {"0": x.tobytes()},
        compression=zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(UserError, match="is compressed"):
        readers.read(path)


# What a pickle must never get at, each with arguments that would leave a trace.
CALLS = [
    ("os", "system", ("touch {}",)),
    ("posix", "system", ("touch {}",)),
    ("nt", "system", ("touch {}",)),
    ("subprocess", "check_output", (["touch", "{}"],)),
    ("builtins", "eval", ("open('{}', 'w')",)),
    ("builtins", "exec", ("open('{}', 'w')",)),
    ("__builtin__", "eval", ("open('{}', 'w')",)),
    ("builtins", "open", ("{}", "w")),
    ("pathlib", "Path.touch", ("{}",)),
    ("operator", "methodcaller", ("touch",)),
    ("functools", "partial", (print, "x")),
    ("torch", "load", ("{}",)),
    ("torch.storage", "_load_from_bytes", (b"x",)),
    ("numpy", "load", ("{}",)),
    ("argparse", "Namespace", ()),
]


@pytest.mark.parametrize("kind", ["pkl", "pth", "legacy"])
@pytest.mark.parametrize(("module", "name", "args"), CALLS, ids=lambda x: str(x)[:20])
def test_calls_are_refused_and_named(tmp_path, module, name, args, kind):
    trace = tmp_path / "trace"
    args = tuple(
        a.format(trace)
        if isinstance(a, str)
        else [t.format(trace) for t in a]
        if isinstance(a, list)
        else a
        for a in args
    )
    x = np.arange(4, dtype=np.float32)
    bomb = {
        "model": {"x": x if kind == "pkl" else tensor("0", x)},
        "meta": [Named(module, name, args)],
    }
    path = tmp_path / f"x.{kind}"
    if kind == "pth":
        write_zip(path, bomb, {"0": x.tobytes()})
    elif kind == "pkl":
        path.write_bytes(pickled(bomb))
    else:
        parts = [pickle.dumps(p, 2) for p in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(b"".join(parts) + pickled(bomb))
    with pytest.raises(
        UserError, match=rf"x\.{kind}: refused: it holds '{module}\.{name}'.*was executed"
    ):
        readers.read(path)
    assert not trace.exists()


def test_builders_cannot_be_changed(tmp_path):
    # BUILD with a state would set attributes of what it is given.
    builder = pickle.GLOBAL + b"collections\nOrderedDict\n"
    for state in ({"_make": 1}, (None, {"_make": 1}), (None, {"__call__": 1})):
        path = tmp_path / "x.pkl"
        state = pickle.dumps(state, 2)[2:-1]
        path.write_bytes(b"\x80\x02" + builder + state + pickle.BUILD + pickle.STOP)
        with pytest.raises(UserError, match="attributes of a Global"):
            readers.read(path)
    same(readers.read(torch_zip(tmp_path / "y.pth")).tensors, ARRAYS)


def test_files_that_are_no_weights(tmp_path):
    cases = {
        "empty": (b"", "is empty"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "git-LFS pointer"),
        "page": (b"\n<!DOCTYPE html><html>", "a web page"),
        "text": (b"hello", "none of the known kinds"),
        "list": (pickle.dumps([1, 2]), "no dict of tensors"),
        "zip": (b"PK\x03\x04" + b"\0" * 99, "the zip is cut short"),
        "objects": (pickle.dumps({"x": np.array([{}])}), "an array of NumPy's type 'O8'"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.pth: .*{reason}"):
            readers.read(path)
    with pytest.raises(UserError, match="there is no such file"):
        readers.read(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="a folder"):
        readers.read(tmp_path)


def hostile_pickles():
    """Small files that ask for much: time, memory, or the stack of the C library."""
    deep = b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."  # a tuple a million deep, as a key
    memo = b"\x80\x02}r" + struct.pack("<I", 400_000_000) + b"."  # entry 400,000,000 of the memo
    # Twelve lists, each ten times the one before: 10**11 paths to walk.
    shared = b"\x80\x02}U\x01a]q\x00K\x01a"
    for i in range(1, 12):
        shared += b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * 10 + b"e"
    inside_itself = b"\x80\x02}U\x01a]q\x00h\x00as."
    return {"deep": deep, "memo": memo, "shared": shared + b"s.", "itself": inside_itself}


@pytest.mark.parametrize("name", list(hostile_pickles()))
def test_small_files_cannot_ask_for_much(tmp_path, name):
    path = tmp_path / "x.pkl"
    path.write_bytes(hostile_pickles()[name])
    # In a process of its own: what goes wrong here ends processes. 3 GiB are for the libraries.
    code = (
        "import resource, sys\n"
        "from maskrcnn_jax.errors import UserError\n"
        "from maskrcnn_jax.weights import readers\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    readers.read(sys.argv[1])\n"
        "except UserError as error:\n"
        "    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "    assert grown < 2**20, grown\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert str(path) in run.stdout


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_old_protocols_are_pickles_too(tmp_path, protocol):
    path, trace = tmp_path / "x.pth", tmp_path / "trace"
    path.write_bytes(f"cos\nsystem\n(S'touch {trace}'\ntR.".encode())
    with pytest.raises(UserError, match=r"'os\.system'.*was executed"):
        readers.read(path)
    assert not trace.exists()
    # Bytes of protocols 0 and 1 are texts that are encoded.
    path.write_bytes(pickle.dumps({"model": {"x": ARRAYS["a.weight"]}}, protocol))
    same(readers.read(path).tensors, {"x": ARRAYS["a.weight"]})


def test_what_honest_training_checkpoints_hold_besides(tmp_path):
    state = {
        "model": {"x": np.float32([1, 2])},
        "scheduler": {"milestones": collections.Counter({60000: 1}), "last_epoch": 3},
        "args": {"betas": (0.9, 0.999), "best": None, "steps": {1, 2}},
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(state, 2))
    source = readers.read(path)
    same(source.tensors, {"x": np.float32([1, 2])})
    assert source.extra["scheduler"] == {"milestones": {60000: 1}, "last_epoch": 3}
    # Element types, as torch >= 1.13 writes them beside tensors, and its newest way of a tensor.
    x = np.arange(4, dtype="<f4")
    storage = b"(U\x07storagectorch.storage\nUntypedStorage\nU\x010U\x03cpuK\x10tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage + b"K\x00K\x04\x85K\x01\x85\x89}"
    content = b"\x80\x02}U\x01x" + tensor + b"ctorch\nfloat32\n}tRsU\x01dctorch\nfloat16\ns."
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/data/0", x.tobytes())
    same(readers.read(tmp_path / "x.pth").tensors, {"x": x})


def test_a_flipped_bit_is_seen(tmp_path):
    path = torch_zip(tmp_path / "x.pth")
    content = bytearray(path.read_bytes())
    where = content.find(next(x for x in ARRAYS.values() if x.nbytes > 8).tobytes())
    content[where + 5] ^= 64
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="wrong checksum"):
        readers.read(path)


def test_values_of_other_files_are_not_read(tmp_path):
    np.arange(4, dtype="<f4").tofile(tmp_path / "secret.raw")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(3, np.float32)

    def linked(group):
        group.create_group("conv1")["kernel:0"] = h5py.ExternalLink("other.h5", "/x")

    def soft(group):
        group["x"] = np.ones(3, np.float32)
        group.create_group("conv1")["kernel:0"] = h5py.SoftLink("/conv1/x")

    def external(group):
        place = [(str(tmp_path / "secret.raw"), 0, 16)]
        group.create_dataset("conv1/kernel:0", (4,), "f4", external=place)

    def huge(group):
        group.create_dataset("conv1/kernel:0", (10**6, 10**4), "f4", chunks=(1000, 1000))

    cases = ((linked, "is a link"), (soft, "is a link"), (external, "lie in another file"))
    for put, reason in (*cases, (huge, "claims 40000000000 bytes")):
        path = tmp_path / f"{put.__name__}.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [b"conv1"]
            group = file.create_group("conv1")
            group.attrs["weight_names"] = [b"conv1/kernel:0"]
            put(group)
        with pytest.raises(UserError, match=reason):
            readers.read(path)


def test_compressed_zeros_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(80_000_000, np.float32))
    with pytest.raises(UserError, match="claims 3200001.. bytes"):
        readers.read(tmp_path / "x.npz")


def test_real_broken_files(shared_data):
    files = [f for f in sorted((shared_data / "broken_weights").iterdir()) if f.suffix != ".md"]
    assert len(files) >= 5
    for file in files:
        with pytest.raises(UserError, match=file.name):
            readers.read(file)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One small file of each kind."""
    folder = tmp_path_factory.mktemp("sound")
    save_file(ARRAYS, folder / "x.safetensors")
    np.savez(folder / "x.npz", **ARRAYS)
    made = [torch_zip(folder / "x.pth"), torch_legacy(folder / "old.pth")]
    made += [detectron2_pkl(folder / "x.pkl"), keras_h5(folder / "x.h5")]
    return [path.read_bytes() for path in (*made, folder / "x.safetensors", folder / "x.npz")]


# MASKRCNN_FUZZ=1000 for a longer search.
@settings(
    max_examples=int(os.environ.get("MASKRCNN_FUZZ", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damage_ends_in_one_error(sound, tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(sound), label="file"))
    content = content[: data.draw(st.integers(0, len(content)), label="cut")]
    if data.draw(st.booleans(), label="whole"):
        content = bytearray(data.draw(st.sampled_from(sound)))
    for _ in range(data.draw(st.integers(0, 4), label="flips")):
        if content:
            where = data.draw(st.integers(0, len(content) - 1))
            content[where] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.pth"
    path.write_bytes(bytes(content))
    modules = set(sys.modules)
    try:
        found = readers.read(path).tensors
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert all(x.dtype.kind in "fiubV" for x in found.values())
    assert {m.partition(".")[0] for m in set(sys.modules) - modules} <= {
        "numpy",
        "h5py",
        "encodings",
    }
