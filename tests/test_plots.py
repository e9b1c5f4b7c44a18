"""The plots of losses and confusion matrices."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import fontManager

from tasks.scores import scores
from training.plots import (
    CHINESE_FONTS,
    draw_confusion,
    draw_losses,
    escape_missing_glyphs,
    font_families,
    plot_confusion,
    plot_losses,
)

ROOT = Path(__file__).resolve().parents[1]
METRICS = [
    {"step": 0, "tokens": 0, "train_loss": None, "val_loss": 4.0, "seconds": 0.0},
    {"step": 10, "tokens": 1_000_000, "train_loss": 3.0, "val_loss": 3.5, "seconds": 1.0},
    {"step": 20, "tokens": 2_000_000, "train_loss": 2.0, "val_loss": 2.5, "seconds": 2.0},
    {"step": 25, "tokens": 7_000_000, "train_loss": 1.5, "val_loss": 2.6, "seconds": 3.0},  # with a larger batch size
]
AVERAGED = [line | {"ema_val_loss": line["val_loss"] - 0.1} for line in METRICS]


def curves(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_each_loss_of_a_run_has_a_curve():
    training = [[10, 3.0], [20, 2.0], [25, 1.5]]
    validation = [[0, 4.0], [10, 3.5], [20, 2.5], [25, 2.6]]
    [axes] = draw_losses(METRICS, "tiny", "training loss").axes
    assert curves(axes) == {"training loss (lowest 1.5000)": training, "validation loss (lowest 2.5000)": validation}
    [axes] = draw_losses(AVERAGED, "tiny", "loss of both heads").axes
    assert curves(axes) == {
        "loss of both heads (lowest 1.5000)": training, "validation loss (lowest 2.5000)": validation,
        "validation loss, averaged weights (lowest 2.4000)": [[step, loss - 0.1] for step, loss in validation]}
    began_or_ended_in_the_middle = AVERAGED[3:] + METRICS[3:]
    [axes] = draw_losses(began_or_ended_in_the_middle, "tiny", "training loss").axes
    assert len(curves(axes)) == 3


def test_the_plot_shows_all_losses_except_the_first():
    [axes] = draw_losses(METRICS, "tiny", "training loss").axes
    low, high = axes.get_ylim()
    assert low < 1.5 and 3.5 < high < 4.0


@pytest.mark.parametrize("step, millions", [(0, 0.0), (5, 0.5), (10, 1.0), (22.5, 4.5), (25, 7.0)])
def test_the_upper_axis_shows_the_tokens_of_each_step_even_if_the_batch_size_changed(step, millions):
    figure = draw_losses(METRICS, "tiny", "training loss")
    figure.draw_without_rendering()
    [axes] = figure.axes
    [above] = axes.child_axes
    x, _ = axes.transData.transform((step, 0))
    x_above, _ = above.transData.transform((millions, 0))
    assert np.isclose(x, x_above)


@pytest.mark.parametrize("title", ["$x_1 \\frac{", "100$", "$$", "\\", "诗词", "two\nlines", "n" * 5000, "\udcff"])
def test_any_title_is_drawn_as_plain_text_without_warnings(tmp_path, capfd, title):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_losses(METRICS, tmp_path / "loss.png", title, "training loss")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert capfd.readouterr() == ("", "")


def test_an_installed_chinese_font_is_used_for_characters_that_the_default_fonts_lack(monkeypatch):
    default = font_families()
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, fontManager.ttflist[0].__class__(name="SimHei")])
    assert font_families() == [*default, "SimHei"]


@pytest.mark.parametrize("metrics, target, words", [
    ([], "loss.png", "IndexError"), ([{"step": 5}], "loss.png", "KeyError"), (METRICS, "folder", "cannot write"),
])
def test_a_failed_plot_prints_one_line(tmp_path, capsys, metrics, target, words):
    (tmp_path / "folder").mkdir()
    plot_losses(metrics, tmp_path / target, "tiny", "training loss")
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("cannot plot the losses: ") and words in line
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("broken", ["no folder for its cache", "not installed"])
def test_a_broken_matplotlib_prints_at_most_one_line(tmp_path, broken):
    (tmp_path / "file").touch()
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "file" / "below")}
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
    if broken == "not installed":
        code += "sys.modules['matplotlib'] = None\n"
    code += f"from training.plots import plot_losses; plot_losses({METRICS}, Path('loss.png'), 'tiny', 'training loss')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if broken == "not installed":
        assert done.stdout.count("\n") == 1 and "matplotlib" in done.stdout
    else:
        assert done.stdout == "" and (tmp_path / "loss.png").exists()


# ---- Confusion matrix ------------------------------------------------------------------------------------------------


def test_the_confusion_matrix_shows_each_count_at_its_true_and_predicted_label():
    probabilities = np.eye(3)[[0, 1, 1, 2, 2, 2, 0]]
    figure = draw_confusion(scores(["$a", "b_1", "c"], np.array([0, 0, 1, 2, 2, 2, 1]), probabilities))
    figure.draw_without_rendering()
    [axes] = figure.axes
    shown = {text.get_position()[::-1]: text.get_text() for text in axes.texts}  # (true, predicted)
    assert shown == {(0, 0): "1", (0, 1): "1", (0, 2): "0", (1, 0): "1", (1, 1): "1", (1, 2): "0",
                     (2, 0): "0", (2, 1): "0", (2, 2): "3"}
    for axis in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in axis] == ["$a", "b_1", "c"]
    assert axes.get_title() == "7 texts, 71.43% correct"


@pytest.mark.parametrize("labels", [["差", "好"], ["$x_1 \\frac{", "two\nlines"], ["n" * 5000, "\udcff"],
                                    [str(i) for i in range(300)]])
def test_any_labels_are_drawn_without_warnings(tmp_path, capfd, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(scores(labels, np.arange(len(labels)), np.eye(len(labels))), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert capfd.readouterr() == ("", "")


def test_a_character_that_no_font_has_is_escaped():
    assert escape_missing_glyphs("naïve \U0010fffd") == "naïve \\U0010fffd"
    if not {*CHINESE_FONTS} & {*font_families()}:
        assert escape_missing_glyphs("好") == "\\u597d"
