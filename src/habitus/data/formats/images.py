"""Images that a format keeps as PNG or JPEG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from habitus.core.errors import DataError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def is_image(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether [height, width, channels] of this type can be kept as PNG without loss."""
    return len(shape) == 3 and shape[2] in _MODES and dtype == np.uint8 and min(shape) > 0


def png(image: np.ndarray) -> bytes:
    """uint8 [height, width, channels] as PNG."""
    out = io.BytesIO()
    flat = image[..., 0] if image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(flat)).save(out, "png", compress_level=1)
    return out.getvalue()


def pixels(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """A PNG or JPEG as uint8 [height, width, channels].

    Raises:
        DataError: if it is neither, is damaged, or does not have the shape; the size is looked at before unpacking.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if (image.height, image.width) != shape[:2] or shape[2] not in _MODES:
                raise DataError(f"an image has {image.height} x {image.width} pixels, expected {list(shape)}.")
            return np.asarray(image.convert(_MODES[shape[2]]), np.uint8).reshape(shape)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"an image is damaged ({type(error).__name__}: {error}).") from error
