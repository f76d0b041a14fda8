"""``callback.plot()``: a metric at every site over the steps, below the loss, from the file that the callback writes."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from geomprobe import GeomprobeError, Reading
from geomprobe.files import StepFile
from geomprobe.integrations import ProbeCallback
from geomprobe.integrations.records import record_of
from geomprobe.integrations.training_plot import plot_training

SITES = ("embed", "layer_00", "final_norm")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


@pytest.fixture
def file(tmp_path: Path) -> StepFile:
    """Losses at each tenth step, readings at 10, 20 and 40, and an evaluation at 40."""
    made = StepFile(tmp_path / "geomprobe.jsonl")
    for step in (10, 20, 30, 40):
        made.append(step, {"loss": 4.0 - step / 20})
        if step != 30:
            values = {f"effective_rank/{site}": float(step + i) for i, site in enumerate(SITES)} | {"a$b$/embed": 1.0}
            values["effective_rank/embed"] = math.nan if step == 20 else values["effective_rank/embed"]
            made.append(step, record_of(Reading("train", SITES, values)))
    made.append(40, record_of(Reading("eval", SITES, {"effective_rank/embed": 5.0})) | {"loss": 2.5})
    return made


def drawn(ax: Axes) -> list[list[float | None]]:
    (mesh,) = ax.collections
    array = mesh.get_array()
    assert array is not None
    values: list[list[float | None]] = np.ma.asarray(array).tolist()
    return values


def test_the_map_has_a_column_for_each_step_and_the_loss_stands_above(file: StepFile) -> None:
    ax = plot_training(file, "effective_rank", mode="train", ax=None)
    assert drawn(ax) == [[10.0, None, 40.0], [11.0, 21.0, 41.0], [12.0, 22.0, 42.0]]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(SITES)
    (above,) = ax.child_axes
    assert np.asarray(above.get_lines()[0].get_xydata()).tolist() == [[10, 3.5], [20, 3], [30, 2.5], [40, 2]]
    assert (above.get_ylabel(), ax.get_xlabel()) == ("loss", "step")
    assert above.get_title() == "The loss, and a metric at every site, in mode train\nblank: not known, 1 value"
    assert above.get_xlim() == ax.get_xlim()


def test_an_evaluation_has_its_own_loss_and_one_step_is_enough(file: StepFile) -> None:
    ax = plot_training(file, "effective_rank", mode="eval", ax=None)
    assert drawn(ax) == [[5.0]]
    assert np.asarray(ax.child_axes[0].get_lines()[0].get_xydata()).tolist() == [[40, 2.5]]
    ax.figure.canvas.draw()


def test_it_draws_on_the_axes_of_the_user_and_names_are_no_formulas(file: StepFile) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, layout="constrained")
    assert plot_training(file, "a$b$", mode="train", ax=left) is left
    assert right.collections == right.child_axes == []
    assert pyplot.get_fignums() == [figure.number]
    figure.canvas.draw()


def test_a_training_without_losses_says_so(tmp_path: Path) -> None:
    made = StepFile(tmp_path / "geomprobe.jsonl")
    made.append(1, record_of(Reading("train", SITES, {"entropy/embed": 0.5})))
    ax = plot_training(made, "entropy", mode="train", ax=None)
    assert "no loss was logged for these steps" in ax.get_title()


def test_what_cannot_be_drawn(file: StepFile, tmp_path: Path) -> None:
    with pytest.raises(GeomprobeError, match="has not measured a training yet; train first"):
        ProbeCallback().plot()
    with pytest.raises(GeomprobeError, match=r"no reading of mode 'no_grad' in .*the file has readings of mode eval and train"):
        plot_training(file, "effective_rank", mode="no_grad", ax=None)
    with pytest.raises(GeomprobeError, match=r"no reading of mode 'train' in .*: no step was measured yet"):
        plot_training(StepFile(tmp_path / "none.jsonl"), "entropy", mode="train", ax=None)
    with pytest.raises(GeomprobeError, match=r"no number 'effective_rnk' .*; the nearest: 'effective_rank/"):
        plot_training(file, "effective_rnk", mode="train", ax=None)
    with pytest.raises(GeomprobeError, match="'effective_rank/embed' is one number: give the metric without the site"):
        plot_training(file, "effective_rank/embed", mode="train", ax=None)
    with pytest.raises(GeomprobeError, match=r"plot\(ax=ndarray\): expected one axes"):
        plot_training(file, "effective_rank", mode="train", ax=pyplot.subplots(1, 2)[1])
    assert len(pyplot.get_fignums()) == 1  # that of the last line
