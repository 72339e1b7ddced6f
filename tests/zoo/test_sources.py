"""Image sources: every form that users have, resampling, hashes, and one clear error for each way to fail."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from weightspace.errors import DataSourceError
from weightspace.zoo.sources import ImageSet, load_images


def _idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 5, 5), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(6, dtype=np.uint8) % 3


def test_digits_have_the_known_counts_and_hash():
    digits = load_images("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert torch.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.keys[42] == "digits/0042"
    assert digits.sha256 == load_images("digits").sha256


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_with_their_labels_beside_them(tmp_path, pixels, labels, packed):
    pack, suffix = (gzip.compress, ".gz") if packed else (bytes, "")
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(_idx(pixels)))
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(_idx(labels)))
    images = load_images(tmp_path / f"t10k-images-idx3-ubyte{suffix}")
    torch.testing.assert_close(images.images[:, 0], torch.from_numpy(pixels).float() / 255)
    assert images.labels.tolist() == labels.tolist()
    assert images.keys[0] == "t10k-images-idx3-ubyte/0000"


def test_an_image_keeps_its_key_when_the_set_grows(tmp_path):
    keys = []
    for count in (6, 10_000, 10_002):
        np.savez(tmp_path / "set.npz", images=np.zeros((count, 1, 1), np.uint8), labels=np.zeros(count, np.int64))
        keys.append(load_images(tmp_path / "set.npz").keys)
    assert keys[0] == keys[1][:6] == keys[2][:6]
    assert keys[1] == keys[2][:10_000]
    assert keys[2][9_999:] == ("set/9999", "set/10000", "set/10001")


def test_npz_bytes_and_floats_agree(tmp_path, pixels, labels):
    np.savez(tmp_path / "bytes.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "floats.npz", images=pixels / 255.0, labels=labels)
    a, b = load_images(tmp_path / "bytes.npz"), load_images(tmp_path / "floats.npz")
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=0)
    assert a.keys[3] == "bytes/0003"


def test_folder_of_class_folders_grey_and_colour(tmp_path, pixels):
    for kind, array in (("grey", pixels), ("colour", np.stack([pixels] * 3, -1))):
        for n, picture in enumerate(array):
            folder = tmp_path / kind / f"class{n % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{n}.png")
    grey, colour = load_images(tmp_path / "grey"), load_images(tmp_path / "colour")
    assert grey.images.shape == (6, 1, 5, 5)
    assert colour.images.shape == (6, 3, 5, 5)
    assert grey.keys[:2] == ("class0/0.png", "class0/3.png")
    assert grey.labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(grey.images[1, 0], torch.from_numpy(pixels[3]).float() / 255)


def test_resampling_keeps_constants_ramps_and_the_original():
    digits = load_images("digits").first(10)
    assert digits.resized(8) is digits
    assert digits.resized(28).images.shape == (10, 1, 28, 28)
    flat = ImageSet(torch.full((1, 1, 4, 4), 0.25), torch.zeros(1, dtype=torch.int64), ("a",), "flat")
    torch.testing.assert_close(flat.resized(9).images, torch.full((1, 1, 9, 9), 0.25))
    ramp = ImageSet(((torch.arange(8) + 0.5) / 8).expand(1, 1, 8, 8), flat.labels, ("a",), "ramp")
    fine = ((torch.arange(32) + 0.5) / 32).expand(32, 32)
    torch.testing.assert_close(ramp.resized(32).images[0, 0, :, 2:-2], fine[:, 2:-2])


def test_hash_tells_pixels_labels_and_keys_apart():
    def images(value=0.5, label=0, key="a"):
        return ImageSet(torch.full((1, 1, 2, 2), value), torch.tensor([label]), (key,), "x").sha256

    assert len({images(), images(value=0.6), images(label=1), images(key="b")}) == 4
    assert images() == images()


def test_first_images():
    digits = load_images("digits")
    assert digits.first(0) is digits
    assert digits.first(3).keys == digits.keys[:3]


def test_missing_source(tmp_path):
    with pytest.raises(DataSourceError, match="not a file or folder.*Give 'digits'"):
        load_images(tmp_path / "nowhere")


def test_idx_without_labels(tmp_path, pixels):
    (tmp_path / "my-images-idx3-ubyte").write_bytes(_idx(pixels))
    with pytest.raises(DataSourceError, match="No labels for IDX file"):
        load_images(tmp_path / "my-images-idx3-ubyte")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a", "not an IDX file"),
        (b"", "not an IDX file"),
        (bytes((0, 0, 8, 3, 0)), "not an IDX file"),
        (_idx(np.zeros((2, 3, 3), np.uint8))[:-1], "truncated"),
    ],
)
def test_broken_idx(tmp_path, content, message, labels):
    (tmp_path / "images.idx").write_bytes(content)
    (tmp_path / "labels.idx").write_bytes(_idx(labels))
    with pytest.raises(DataSourceError, match=message):
        load_images(tmp_path / "images.idx")


def test_broken_gzip(tmp_path, pixels, labels):
    (tmp_path / "images.gz").write_bytes(gzip.compress(_idx(pixels))[:-20])
    (tmp_path / "labels.gz").write_bytes(gzip.compress(_idx(labels)))
    with pytest.raises(DataSourceError, match="cannot be read.*Fetch it again"):
        load_images(tmp_path / "images.gz")


def test_counts_that_differ(tmp_path, pixels, labels):
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels[:-1])
    with pytest.raises(DataSourceError, match="as many images as labels"):
        load_images(tmp_path / "a.npz")


@pytest.mark.parametrize("arrays", [{"pictures": np.zeros(3)}, {"images": np.array([None])}])
def test_npz_with_other_contents(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataSourceError, match="cannot be read as image arrays"):
        load_images(tmp_path / "a.npz")


def test_npz_with_labels_or_channels_nobody_can_read(tmp_path, pixels, labels):
    np.savez(tmp_path / "names.npz", images=pixels, labels=np.array(["a"] * len(pixels)))
    with pytest.raises(DataSourceError, match="Labels of 'names' must be whole numbers"):
        load_images(tmp_path / "names.npz")
    np.savez(tmp_path / "first.npz", images=pixels[:, None].repeat(3, 1), labels=labels)
    with pytest.raises(DataSourceError, match="must have their channels last"):
        load_images(tmp_path / "first.npz")


def test_file_that_only_looks_like_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataSourceError, match="cannot be read as image arrays"):
        load_images(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("images", "message"),
    [(np.zeros((6, 4)), "must be \\(N, H, W\\)"), (np.full((6, 2, 2), 2.0), "numbers in \\[0, 1\\]")],
)
def test_arrays_of_the_wrong_kind(tmp_path, images, labels, message):
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(DataSourceError, match=message):
        load_images(tmp_path / "a.npz")


def test_empty_folder(tmp_path):
    with pytest.raises(DataSourceError, match="holds no pictures"):
        load_images(tmp_path)


def test_pictures_of_different_sizes(tmp_path, pixels):
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "a" / "0.png")
    Image.fromarray(pixels[0, :3]).save(tmp_path / "a" / "1.png")
    with pytest.raises(DataSourceError, match="different sizes"):
        load_images(tmp_path)


def test_folder_without_pillow(tmp_path, pixels, monkeypatch):
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "a" / "0.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataSourceError, match="needs Pillow.*pip install pillow"):
        load_images(tmp_path)


def test_repeated_keys_and_bad_grids():
    with pytest.raises(DataSourceError, match="keys that repeat"):
        ImageSet(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), ("a", "a"), "x")
    with pytest.raises(DataSourceError, match="'grid' must be at least 1"):
        load_images("digits").resized(0)
