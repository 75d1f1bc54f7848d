"""What the header of a picture says: its kind, size and EXIF orientation."""

from pathlib import Path

from PIL import Image

from maskrcnn_jax.data.formats.draft import Draft
from maskrcnn_jax.errors import UserError

# Suffixes by Pillow's name of the kind.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
}
_ORIENTATION_TAG = 0x0112
FIRST_TRANSPOSING = 5  # orientations 5 to 8 exchange height and width


def read_header(path: Path) -> tuple[str, tuple[int, int], int]:
    """Kind ("JPEG"), stored size (height, width) and EXIF orientation 1..8 of a picture.

    Raises:
      UserError: it is no picture that can be read.
    """
    try:
        with Image.open(path) as image:
            size = (image.height, image.width)
            return image.format or "", size, _orientation(image)
    except Exception as error:  # Pillow's readers raise many kinds on damaged files
        reason = "a git-LFS pointer: run `git lfs pull`" if _is_lfs_pointer(path) else error
        raise UserError(f"{path}: the picture cannot be read ({reason}); replace it") from error


def _orientation(image: Image.Image) -> int:
    try:
        # Not image.getexif(), which decodes the whole picture if it is a PNG.
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata; the pixels may be sound all the same
        return 1
    return orientation if type(orientation) is int and 1 <= orientation <= 8 else 1


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            return b"git-lfs" in stream.read(40)
    except OSError:
        return False


def tell_orientation(
    draft: Draft, where: str, file: str, orientation: int, stored: tuple, size: tuple
) -> None:
    """A finding that a picture is turned by EXIF, and what its annotations were drawn on.

    stored, size: (height, width) as stored, and as the picture is used.
    """
    turned = f"EXIF orientation {orientation}"
    if orientation < FIRST_TRANSPOSING or stored[0] == stored[1]:
        draft.find(
            "warning",
            "exif",
            where,
            f"{turned}: its size cannot tell whether it was labelled as stored or as shown, and it "
            "is used as stored: look, or save it upright and label that",
            file,
        )
    elif size == stored:
        draft.find("warning", "exif", where, f"{turned}, but labelled as stored: look", file)
    else:
        draft.find("note", "exif", where, f"{turned}: it is turned upright", file)
