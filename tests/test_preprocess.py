"""Decoding, sizes, canvases and padding against Pillow and their definitions."""

import io

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_jax import preprocess
from maskrcnn_jax.errors import UserError

sides = st.integers(1, 3000)


def _encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _photo(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * x, 12 * y, 255 - 4 * x - 4 * y], -1).astype(np.uint8)


@given(sides, sides, st.integers(32, 1024), st.floats(1, 3))
def test_resized_images_fit_a_derived_canvas(height, width, short, ratio):
    long = int(short * ratio)
    size = preprocess.shortest_edge_size((height, width), short, long)
    assert min(size) <= short and max(size) <= long and min(size) >= 1
    canvas = preprocess.choose_canvas(size, preprocess.derive_canvases(short, long))
    assert canvas[0] % 32 == canvas[1] % 32 == 0


@settings(max_examples=30)
@given(st.tuples(*[st.integers(1, 40)] * 4), st.integers(0, 2**32 - 1))
def test_bilinear_resize_is_jaxs(sizes, seed):
    """Up and down, to and from single pixels, of images with and without channels."""
    image = np.random.default_rng(seed).uniform(0, 255, (*sizes[:2], 3)).astype(np.float32)
    ours = preprocess.resize_bilinear(image, sizes[2:])
    theirs = jax.image.resize(image, (*sizes[2:], 3), "linear", antialias=False)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    flat = preprocess.resize_bilinear(image[..., 0], sizes[2:])
    np.testing.assert_array_equal(flat, ours[..., 0])
    assert ours.dtype == np.float32


@settings(max_examples=50)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(16, 128), st.floats(1, 3))
def test_torchvisions_sizes_are_those_of_detectron2_or_one_less(height, width, short, ratio):
    """Both keep the aspect; torchvision rounds down where Detectron2 rounds to the nearest."""
    image, limit = np.zeros((height, width, 3), np.uint8), int(short * ratio)
    ours = preprocess.resize_torchvision(image, short, limit).shape[:2]
    theirs = preprocess.shortest_edge_size((height, width), short, limit)
    assert all(b - a in (0, 1) for a, b in zip(ours, theirs, strict=True))
    assert min(ours) <= short and max(ours) <= limit


def test_canvases_of_detectron2_sizes():
    assert preprocess.derive_canvases(800, 1333) == (
        (800, 1088),
        (800, 1344),
        (1088, 800),
        (1344, 800),
    )
    assert preprocess.derive_canvases(128, 128) == ((128, 128),)


def test_choose_canvas():
    canvases = ((64, 96), (96, 64), (96, 96))
    assert preprocess.choose_canvas((60, 90), canvases) == (64, 96)
    assert preprocess.choose_canvas((90, 60), canvases) == (96, 64)
    assert preprocess.choose_canvas((70, 70), canvases) == (96, 96)
    with pytest.raises(UserError, match="data.canvases.*97x20"):
        preprocess.choose_canvas((97, 20), canvases)


def test_pad_image():
    padded = preprocess.pad_image(_photo(), (32, 64))
    assert padded.shape == (32, 64, 3)
    np.testing.assert_array_equal(padded[:20, :30], _photo())
    assert padded.sum() == _photo().sum()


def test_path_and_bytes_agree(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(_encode(Image.fromarray(_photo())))
    np.testing.assert_array_equal(preprocess.load_image(path), _photo())
    np.testing.assert_array_equal(preprocess.load_image(str(path)), _photo())
    np.testing.assert_array_equal(preprocess.load_image(path.read_bytes(), (20, 30)), _photo())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    source = Image.fromarray(_photo()).convert(mode)
    pixels = preprocess.load_image(_encode(source, "TIFF"))
    np.testing.assert_array_equal(pixels, np.array(source.convert("RGB")))


def test_alpha_is_dropped():
    rgba = np.concatenate([_photo(), np.zeros((20, 30, 1), np.uint8)], -1)
    np.testing.assert_array_equal(preprocess.load_image(_encode(Image.fromarray(rgba))), _photo())


def test_sixteen_bits_keep_the_higher_byte():
    values = (np.arange(600, dtype=np.uint16) * 109).reshape(20, 30)
    for kind in ("PNG", "TIFF"):
        pixels = preprocess.load_image(_encode(Image.fromarray(values), kind))
        np.testing.assert_array_equal(pixels, np.repeat((values // 256)[..., None], 3, -1))


def test_float_picture_is_refused():
    data = _encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(UserError, match="mode F"):
        preprocess.load_image(data)


def _rotated_by_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encode(Image.fromarray(_photo()), "PNG", exif=exif)


def test_exif_rotation_follows_the_annotated_size():
    data = _rotated_by_exif(6)
    turned = np.rot90(_photo(), -1)
    np.testing.assert_array_equal(preprocess.load_image(data), turned)
    np.testing.assert_array_equal(preprocess.load_image(data, (30, 20)), turned)
    np.testing.assert_array_equal(preprocess.load_image(data, (20, 30)), _photo())
    # Upside down the sizes agree: the annotations are taken to lie on the stored picture.
    np.testing.assert_array_equal(preprocess.load_image(_rotated_by_exif(3), (20, 30)), _photo())
    np.testing.assert_array_equal(preprocess.load_image(_rotated_by_exif(3)), _photo()[::-1, ::-1])


def test_bad_input_is_named(tmp_path):
    good = _encode(Image.fromarray(_photo()), "JPEG")
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"hello, this is text", "not an image"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "cut.jpg": (good[: len(good) * 2 // 3], "truncated"),
        "cut.png": (_encode(Image.fromarray(_photo()))[:-40], "truncated"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=reason) as error:
            preprocess.load_image(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(UserError, match="gone.jpg.*no such image"):
        preprocess.load_image(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        preprocess.load_image(tmp_path)
    with pytest.raises(UserError, match="cat 7.*20 high and 30 wide.*height 21"):
        preprocess.load_image(good, (21, 30), name="cat 7")
