"""Labelled images from what users have at hand: scikit-learn digits, IDX files, folders of pictures, ``.npz`` arrays.

Every image has a *key* that names it for ever (``digits/0042``): seeds and splits hang on keys, never on list order.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.errors import DataSourceError

__all__ = ["ImageSet", "load_images"]

_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_IDX_UNSIGNED_BYTE = 0x08


@dataclass(frozen=True)
class ImageSet:
    """Images with labels and keys.

    Args:
        images: Pixels in [0, 1], float32, of shape ``(N, channels, height, width)``; row 0 is the top.
        labels: Class of each image, int64, of shape ``(N,)``.
        keys: ``N`` different names, stable between runs and machines.
        name: Where they come from, for records (no path of a machine).

    Raises:
        DataSourceError: counts differ, keys repeat, or there are no images.
    """

    images: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        counts = len(self.images), len(self.labels), len(self.keys)
        if len(set(counts)) > 1 or counts[0] == 0:
            raise DataSourceError(
                f"Image source '{self.name}' must have as many images as labels and keys, and at least one "
                f"(got {counts[0]}, {counts[1]} and {counts[2]}). Check that both files belong together."
            )
        if len(set(self.keys)) < len(self.keys):
            raise DataSourceError(f"Image source '{self.name}' has keys that repeat. Give every image its own key.")

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def sha256(self) -> str:
        """Hash of pixels, labels and keys: equal hashes, equal data."""
        digest = hashlib.sha256("\n".join(self.keys).encode())
        for tensor in (self.images, self.labels):
            digest.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def first(self, count: int) -> ImageSet:
        """The first ``count`` images; all of them if ``count`` is 0."""
        if not count:
            return self
        return ImageSet(self.images[:count], self.labels[:count], self.keys[:count], self.name)

    def resized(self, grid: int) -> ImageSet:
        """The same images on a ``grid`` x ``grid`` raster, bilinear (with antialiasing where it gets smaller).

        Raises:
            DataSourceError: ``grid`` is not positive.
        """
        if grid < 1:
            raise DataSourceError(f"'grid' must be at least 1 pixel (got {grid}). Digits have 8, MNIST has 28.")
        if self.images.shape[-2:] == (grid, grid):
            return self
        images = F.interpolate(self.images, (grid, grid), mode="bilinear", align_corners=False, antialias=True)
        return ImageSet(images.clamp(0, 1), self.labels, self.keys, self.name)


def load_images(source: str | Path) -> ImageSet:
    """Read labelled images.

    Args:
        source: ``"digits"`` (8x8, 1,797 images, comes with scikit-learn); an IDX file such as
            ``train-images-idx3-ubyte.gz``, whose labels file lies beside it; a folder with one sub-folder of pictures
            per class; or an ``.npz`` with ``images`` ``(N, H, W)`` or ``(N, H, W, C)`` and ``labels``.

    Raises:
        DataSourceError: there is no such source, or it cannot be read.

    Example:
        >>> len(load_images("digits"))
        1797
    """
    if source == "digits":
        return _digits()
    path = Path(source)
    if path.is_dir():
        return _image_folder(path)
    if not path.is_file():
        raise DataSourceError(
            f"Image source '{source}' is not a file or folder. "
            "Give 'digits', an IDX file, a folder of class folders, or an .npz with 'images' and 'labels'."
        )
    return _arrays(path) if path.suffix == ".npz" else _idx(path)


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits  # here, because importing it takes a second

    pixels, labels = load_digits(return_X_y=True)
    return _image_set(pixels.reshape(-1, 8, 8) / 16.0, labels, "digits")


def _idx(path: Path) -> ImageSet:
    labels_name = path.name.replace("images", "labels").replace("idx3", "idx1")
    candidates = [path.with_name(n) for n in (labels_name, labels_name.removesuffix(".gz"), f"{labels_name}.gz")]
    labels_path = next((p for p in candidates if p != path and p.is_file()), None)
    if labels_path is None:
        raise DataSourceError(
            f"No labels for IDX file '{path.name}': '{labels_name}' is not beside it. Put the labels file there."
        )
    pixels, labels = _read_idx(path), _read_idx(labels_path)
    return _image_set(pixels / 255.0, labels, path.name.removesuffix(".gz"))


def _read_idx(path: Path) -> np.ndarray:
    """Unsigned-byte IDX array: two zero bytes, type, rank, big-endian sizes, values."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataSourceError(f"IDX file '{path.name}' cannot be read ({error}). Fetch it again.") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _IDX_UNSIGNED_BYTE)) or len(raw) < 4 + 4 * raw[3]:
        raise DataSourceError(
            f"'{path.name}' is not an IDX file of bytes (it starts with {raw[:4].hex() or 'nothing'}). "
            "Give MNIST-like files, an .npz, or a folder of class folders."
        )
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if values.size != np.prod(shape):
        raise DataSourceError(
            f"IDX file '{path.name}' announces {shape} values and holds {values.size}. It is truncated; fetch it again."
        )
    return values.reshape(shape)


def _arrays(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as data:
            images, labels = data["images"], data["labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataSourceError(
            f"'{path.name}' cannot be read as image arrays ({error}). "
            "Save it with numpy.savez(path, images=..., labels=...), no object arrays."
        ) from error
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    return _image_set(images / scale, labels, path.stem)


def _image_folder(path: Path) -> ImageSet:
    files = sorted(p for p in path.glob("*/*") if p.suffix.lower() in _PICTURE_SUFFIXES)
    if not files:
        raise DataSourceError(
            f"Folder '{path.name}' holds no pictures in class folders (looked for */*.png and the like). "
            "Give a folder with one sub-folder per class."
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise DataSourceError(
            f"Reading pictures from '{path.name}' needs Pillow. Install it with 'pip install pillow', or give an .npz."
        ) from error
    classes = sorted({p.parent.name for p in files})
    arrays = []
    for file in files:
        with Image.open(file) as picture:
            grey = picture.mode in {"1", "L", "LA", "I", "I;16", "F"}
            arrays.append(np.asarray(picture.convert("L" if grey else "RGB")))
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        raise DataSourceError(
            f"Pictures in '{path.name}' have different sizes ({sorted(shapes)[:3]} ...). Bring them to one size first."
        )
    labels = np.array([classes.index(p.parent.name) for p in files])
    keys = [p.relative_to(path).as_posix() for p in files]
    return _image_set(np.stack(arrays) / 255.0, labels, path.name, keys)


def _image_set(images: np.ndarray, labels: np.ndarray, name: str, keys: Sequence[str] = ()) -> ImageSet:
    """From channels-last arrays; keys default to ``name/index``."""
    if images.ndim not in (3, 4):
        raise DataSourceError(
            f"Images of '{name}' must be (N, H, W) or (N, H, W, C) (got shape {images.shape}). Stack them so."
        )
    if not (np.isfinite(images).all() and images.min(initial=0) >= 0 and images.max(initial=0) <= 1):
        raise DataSourceError(
            f"Pixels of '{name}' must be bytes, or numbers in [0, 1] (got {images.min()} to {images.max()}). "
            "Rescale them."
        )
    if images.ndim == 4 and images.shape[3] > 4:
        raise DataSourceError(
            f"Images of '{name}' must have their channels last, 1 to 4 of them (got shape {images.shape}). "
            "Move the channel axis to the end."
        )
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        raise DataSourceError(
            f"Labels of '{name}' must be whole numbers (got {labels.dtype}). Number the classes from 0."
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    numbers = torch.from_numpy(labels.astype(np.int64))
    default = (f"{name}/{i:04d}" for i in range(len(images)))  # whatever the length, so that a set may grow
    return ImageSet(pixels, numbers, tuple(keys) or tuple(default), name)
