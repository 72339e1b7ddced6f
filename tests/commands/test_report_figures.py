"""Figures show what they were given; they leave no settings behind and give the same bytes twice."""

import matplotlib
import numpy as np
import pytest

from weightspace.commands.report.figures import History, confusion_matrix, embedding_map, gallery, learning_curves
from weightspace.commands.report.style import CATEGORIES, house_style, save


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _pixels(axes):
    return np.asarray(axes.images[0].get_array())


def test_gallery_has_a_column_per_image_and_says_its_psnr(rng):
    images = rng.random((4, 8, 8))
    figure = gallery(
        images, images, np.kron(images, np.ones((2, 2))), np.array([30.0, 40.0, 50.0, 61.27]), list("0123")
    )
    assert len(figure.axes) == 3 * 4
    assert [axes.get_title() for axes in figure.axes[:4]] == list("0123")
    assert figure.axes[7].get_xlabel() == "61.3 dB"
    assert figure.axes[0].get_ylabel() == "image\n8x8"
    assert figure.axes[8].get_ylabel() == "INR\n16x16"
    np.testing.assert_array_equal(_pixels(figure.axes[1]), images[1])


def test_gallery_of_one_image(rng):
    image = rng.random((1, 8, 8))
    assert len(gallery(image, image, image, np.array([30.0]), ["7"]).axes) == 3


def test_gallery_without_the_images(rng):
    rendered, fine = rng.random((2, 8, 8)), rng.random((2, 16, 16))
    figure = gallery(None, rendered, fine, np.array([30.0, 31.0]), ["7", "8"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["30.0 dB", "31.0 dB", "", ""]
    np.testing.assert_array_equal(_pixels(figure.axes[0]), rendered[0])


def test_learning_curves_mark_the_epoch_that_every_model_kept():
    # The second and third epoch are equally often right; the third had the lower loss.
    history = History(np.array([0.5, 0.7, 0.9]), np.array([0.4, 0.6, 0.6]), np.array([1.0, 2.0, 3.0]), best_epoch=3)
    figure = learning_curves({"operator": history, "gmn": history})
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert [np.asarray(dot.get_xydata()).tolist() for dot in dots] == [[[3.0, 0.6]]] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["validation", "training", "operator", "gmn"]


def test_confusion_matrix_writes_counts_and_shades_shares():
    figure = confusion_matrix(np.array([[9, 1], [0, 0]]), ["a", "b"], "title")
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "9"]
    np.testing.assert_allclose(_pixels(axes), [[0.9, 0.1], [0.0, 0.0]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_embedding_map_names_classes_and_counts_wrong_ones(rng):
    labels = np.array([0, 0, 1, 1, 1])
    figure = embedding_map(rng.normal(size=(5, 2)), labels, np.array([0, 1, 1, 1, 1]), ["zero", "one", "two"], "title")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["zero", "one"], "a class without points gets no name"
    assert axes.get_legend_handles_labels()[1] == ["read wrongly (1 of 5)"]


def test_the_palette_has_a_colour_per_digit():
    assert len(set(CATEGORIES)) == 10


def test_style_ends_with_its_block_and_files_repeat(tmp_path, rng):
    before = dict(matplotlib.rcParams)
    counts = rng.integers(0, 9, (3, 3))
    with house_style():
        paths = [save(confusion_matrix(counts, list("abc"), "t"), tmp_path / name / "f.png") for name in "xy"]
    assert dict(matplotlib.rcParams) == before
    assert paths[0].read_bytes() == paths[1].read_bytes()
