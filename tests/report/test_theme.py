"""The colours of what has an order, against the contrast that WCAG defines."""

import numpy as np
import pytest
from plotly.colors import sequential, unlabel_rgb

from geomprobe.report.theme import sequence, template


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("dark", "paper"), [(False, "#ffffff"), (True, "#1d2025")])
def test_the_later_the_more_it_stands_out_from_the_paper(dark: bool, paper: str) -> None:
    assert template(dark=dark)["layout"]["hoverlabel"]["bgcolor"] == paper
    light = np.array([luminance(sequence(place)[dark]) for place in np.linspace(0, 1, 41)])
    contrast = (np.maximum(light, luminance(paper)) + 0.05) / (np.minimum(light, luminance(paper)) + 0.05)
    assert contrast[0] > 1.8
    assert contrast[-1] > 14
    assert (np.diff(contrast) > 0).all()


def test_its_ends_are_those_of_the_scale() -> None:
    pale, deep = ("#" + "".join(f"{int(part):02x}" for part in unlabel_rgb(sequential.dense[end])) for end in (0, -1))
    assert sequence(1) == (deep, pale)
    for dark in (False, True):
        scale = template(dark=dark)["data"]["heatmap"][0]["colorscale"]
        assert scale == [[place, sequence(place)[dark]] for place, _ in scale]
        assert (scale[0][0], scale[-1][0]) == (0, 1)
