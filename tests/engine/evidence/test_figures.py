import numpy as np

from diveparse.datasets.dives import ATTRIBUTES
from diveparse.engine.evaluation.pictures import class_count_figure
from diveparse.engine.evidence.figures import accuracy_figure, attribute_figure, figure_image, forest_figure
from diveparse.engine.evidence.statistics import Estimate


def test_accuracy_figure_has_a_row_for_each_arm_and_difference():
    arms = {"flat": Estimate(0.4, 0.3, 0.5), "structured": Estimate(0.6, 0.5, 0.7)}
    difference = {"structured - flat": Estimate(0.2, 0.1, 0.3)}
    figure = accuracy_figure(arms, {"flat": [0.4], "structured": [0.55, 0.65]}, difference, "rendered dives")
    figure_image(figure)
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert rows == [["flat", "structured"], ["structured - flat"]]


def test_accuracy_figure_of_one_arm_has_no_empty_panel():
    figure = accuracy_figure({"flat": Estimate(0.4, 0.3, 0.5)}, {"flat": [0.4]}, {}, "rendered dives")
    assert len(figure.axes) == 1


def test_attribute_figure_has_a_bar_for_each_arm_and_attribute():
    accuracies = {arm: dict.fromkeys(ATTRIBUTES, 0.5) for arm in ("flat", "joint", "constrained")}
    assert len(attribute_figure(accuracies, "rendered dives").axes[0].patches) == 3 * len(ATTRIBUTES)


def test_figure_image_has_the_size_of_the_figure_and_something_in_it():
    figure = class_count_figure(np.array([3, 1]), ["101B", "103B"])
    width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
    image = figure_image(figure)
    assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
    assert image.min() < 100 < image.max()


def test_forest_figure_has_the_pooled_rows_below_those_of_the_settings():
    settings = {"all": Estimate(0.02, 0.01, 0.03), "half": Estimate(0.03, 0.01, 0.05)}
    (axes,) = forest_figure(settings, {"pooled": Estimate(0.025, 0.02, 0.03)}, "rendered dives").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "half", "pooled"]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert points == [(0.02, 0), (0.03, 1), (0.025, 2)]
