import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.dives import DIVING48, DIVING48_TRAIN_COUNTS
from diveparse.engine.evaluation.pictures import class_count_figure, clip_strip, confusion_figure


def drawn(figure):
    """The first axes of a figure, once everything in it has its place."""
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def test_confusion_figure_of_48_classes_names_each_of_them_without_overlap():
    axes = drawn(confusion_figure(np.eye(len(DIVING48), dtype=np.int64), DIVING48.numbers))
    labels = axes.get_yticklabels()
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert [label.get_text() for label in labels] == list(DIVING48.numbers)
    assert all(below.y1 <= above.y0 + 0.5 for below, above in pairwise(boxes))


def test_confusion_figure_colours_a_row_by_its_shares_and_leaves_one_without_clips_blank():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [5, 0, 5]])
    shown = drawn(confusion_figure(matrix, ["101B", "103B", "105B"])).images[0].get_array()
    assert shown.filled(np.nan)[[0, 2]].tolist() == [[0.75, 0.25, 0], [0.5, 0, 0.5]]
    assert np.isnan(shown.filled(np.nan)[1]).all()


def test_confusion_figure_of_few_classes_writes_the_counts():
    axes = drawn(confusion_figure(np.array([[3, 1], [0, 4]]), ["101B", "103B"]))
    assert sorted(text.get_text() for text in axes.texts) == ["1", "3", "4"]


def test_class_count_figure_shows_every_class_most_frequent_first():
    counts = np.array(DIVING48_TRAIN_COUNTS)
    axes = drawn(class_count_figure(counts, DIVING48.numbers))
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == sorted(counts.tolist(), reverse=True)
    assert axes.get_xticklabels()[0].get_text() == DIVING48.numbers[int(counts.argmax())]


@pytest.mark.parametrize("figure", [confusion_figure, class_count_figure])
def test_figures_refuse_names_that_do_not_fit(figure):
    counts = np.zeros((3, 3) if figure is confusion_figure else 3, dtype=np.int64)
    with pytest.raises(ValueError, match="2 names need as many classes"):
        figure(counts, ["101B", "103B"])


def test_clip_strip_lays_frames_out_in_time_from_left_to_right():
    clip = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    strip = clip_strip(clip)
    assert (strip.shape, strip.dtype) == ((3, 5, 24), np.uint8)
    for k in range(4):
        assert np.array_equal(strip[:, :, 6 * k : 6 * (k + 1)], clip[k].numpy())


def test_clip_strip_undoes_the_normalisation_of_a_float_clip():
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    assert np.array_equal(clip_strip((pixels / 255 - mean) / std), clip_strip(pixels))


def test_figures_leave_no_global_state_behind():
    confusion_figure(np.eye(3, dtype=np.int64), ["101B", "103B", "105B"])
    pyplot = sys.modules.get("matplotlib.pyplot")  # another library may have imported it
    assert pyplot is None or pyplot.get_fignums() == []
