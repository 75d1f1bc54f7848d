"""The run-length code of Label Studio's brush.

The brush keeps the picture's RGBA values, packed bit by bit as thi.ng's `rle-pack` does
(https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack): the number of values (32
bits), the bits of a value less one (5), four widths of run lengths less one (4 each); then runs: a
bit that tells repetition, 2 bits that choose the width, the length less one, and one value or that
many. The mask is where the paint is opaque.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, UInt8

_OPAQUE = 128  # of 255: brushes have soft borders


def decode_brush(rle: Any, hw: tuple[int, int]) -> Bool[np.ndarray, "H W"] | None:
    """The mask of a brush region; None if the code is damaged or of another size."""
    if not isinstance(rle, list) or not set(map(type, rle)) <= {int}:
        return None
    if not all(0 <= value < 256 for value in rle):
        return None
    values = _unpack(np.array(rle, np.uint8), 4 * hw[0] * hw[1])
    return None if values is None else (values[3::4] >= _OPAQUE).reshape(hw)


def _unpack(code: UInt8[np.ndarray, " n"], num: int) -> Integer[np.ndarray, " m"] | None:
    """The `num` values of a code; None if it ends too early or has another number of them."""
    end = 8 * len(code)
    padded = code.tobytes() + bytes(8)

    def read(position: int, bits: int) -> int:
        window = int.from_bytes(padded[position // 8 : position // 8 + 8], "big")
        return window >> (64 - position % 8 - bits) & ((1 << bits) - 1)

    if end < 53 or read(0, 32) != num:
        return None
    word = read(32, 5) + 1
    widths = [read(37 + 4 * i, 4) + 1 for i in range(4)]
    values = np.zeros(num, np.int64 if word > 8 else np.uint8)
    done, position = 0, 53
    while done < num:
        repeats = read(position, 1)
        width = widths[read(position + 1, 2)]
        length = read(position + 3, width) + 1
        position += 3 + width
        after = position + (word if repeats else word * length)
        if after > end or done + length > num:
            return None
        if repeats:
            values[done : done + length] = read(position, word)
        else:
            values[done : done + length] = _words(code, position, after, word)
        done, position = done + length, after
    return values


def _words(
    code: UInt8[np.ndarray, " n"], start: int, end: int, word: int
) -> Integer[np.ndarray, " m"]:
    """The values between two bit positions, `word` bits each, highest first."""
    bits = np.unpackbits(code[start // 8 : -(-end // 8)])[start % 8 : start % 8 + end - start]
    return bits.reshape(-1, word).astype(np.int64) @ (1 << np.arange(word - 1, -1, -1))
