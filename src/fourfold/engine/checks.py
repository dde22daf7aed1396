"""What every engine asks of a job's array."""

import numpy as np

from fourfold.errors import InvalidImageError


def check_image(image: object) -> None:
    """Raise InvalidImageError unless *image* is ``[h, w, 3]`` of uint8 or uint16 with h, w >= 1."""
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.uint16):
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise InvalidImageError(f"an image must be an array of uint8 or uint16, got {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidImageError(f"an image must be [h, w, 3] with h, w >= 1, got {list(image.shape)}")
