"""Pictures: one file -> upright RGB pixels, and a picture as a video of one frame."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tubelet.data.info import DecodeError, VideoInfo

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
# What Pillow raises for files that are damaged, no picture, or so large that they may be an attack.
_NO_PICTURE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error),
)


def read_picture(path: str) -> tuple[NDArray[np.uint8], str, str]:
    """-> uint8 [H,W,3], upright by its EXIF tag, with its format and mode; DecodeError."""
    try:
        with Image.open(path) as image:
            # MPO is what some cameras call .jpg: the picture, and smaller copies behind it.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise DecodeError(
                    path, "it is an animation in a picture's format: convert it to .mp4."
                )
            kind, mode = str(image.format).lower(), image.mode
            return np.asarray(_rgb(ImageOps.exif_transpose(image))), kind, mode
    except FileNotFoundError as error:
        raise DecodeError(path, "there is no such file.") from error
    except _NO_PICTURE as error:
        raise DecodeError(path, f"it cannot be read as a picture ({error}).") from error


def picture_size(path: str) -> tuple[int, int, str, str]:
    """-> height, width as shown, format, mode: from the head of the file; DecodeError."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            size = (width, height) if on_its_side else (height, width)
            return *size, str(image.format).lower(), image.mode
    except FileNotFoundError as error:
        raise DecodeError(path, "there is no such file.") from error
    except _NO_PICTURE as error:
        raise DecodeError(path, f"it cannot be read as a picture ({error}).") from error


class Picture:
    """A picture file as a video of one frame at 1 frame per second."""

    def __init__(self, path: str) -> None:
        self._pixels, kind, mode = read_picture(path)
        height, width, _ = self._pixels.shape
        self.info = VideoInfo(1, 1.0, 1.0, height, width, kind, mode, 0)
        self.timestamps = np.zeros(1)
        self.decoded = 1

    def read(self, wanted: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        out[:] = self._pixels

    def close(self) -> None:
        pass


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: 16 bits lose the lower 8, what is transparent shows white behind it."""
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"grey values from {deep.min()} to {deep.max()}, beyond 16 bits")
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("fractions as grey values, of which white is not known")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
