"""Loss curves: the smoothing, and pictures that say what the records say."""

import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.made_up import metric
from tunewright.evaluate.plots import plot_run, plot_runs, smooth


@given(st.floats(-5, 5), st.integers(0, 400))
def test_smoothing_keeps_a_constant(value: float, count: int) -> None:
    np.testing.assert_allclose(smooth(np.full(count, value)), np.full(count, value), atol=1e-9)


def test_smoothing_neither_lags_nor_leaves_noise() -> None:
    line = np.linspace(4, 2, 500)
    noisy = line + np.random.default_rng(0).normal(0, 0.2, 500)
    inside = slice(30, -30)
    np.testing.assert_allclose(smooth(line)[inside], line[inside], atol=1e-6)
    assert np.std(smooth(noisy) - line) < 0.06


def colours(path: Path) -> set[int]:
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    return set(np.unique(pixels @ (1 << 16, 1 << 8, 1)).tolist())


TRAINING, VALIDATION = 0x2F6FDE, 0xD9480F


def test_run_picture_shows_validation_only_where_there_is_some(tmp_path: Path) -> None:
    plain = [metric(step, 4 - step / 50) for step in range(1, 101)]
    plot_run(plain, tmp_path / "plain.png")
    plot_run([*plain[:-1], metric(100, 2.0, 2.5)], tmp_path / "validated.png")
    assert TRAINING in colours(tmp_path / "plain.png")
    assert VALIDATION not in colours(tmp_path / "plain.png")
    assert {TRAINING, VALIDATION} <= colours(tmp_path / "validated.png")


def test_every_run_has_its_curve_and_chinese_names_need_no_font(tmp_path: Path) -> None:
    curves = [metric(step, 4 - step / 50) for step in range(1, 101)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each glyph it lacks
        plot_runs({"keeper": curves, "甄嬛": curves[:50], "empty": []}, tmp_path / "runs.png")
    assert {TRAINING, VALIDATION} <= colours(tmp_path / "runs.png")


def test_one_step_can_be_drawn(tmp_path: Path) -> None:
    plot_run([metric(1, 2.0)], tmp_path / "one.png")
    assert TRAINING in colours(tmp_path / "one.png")
