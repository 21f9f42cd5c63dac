"""Figures: the style, the way onto the page, the overlay."""

import io
import math
import re

import matplotlib
import matplotlib as mpl
import numpy as np
import pytest
import torch

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from ckdlite import figures  # noqa: E402
from ckdlite.results import Effect  # noqa: E402


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, as a list of MIME bundles."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: bundles.append(data))
    return bundles


@pytest.fixture
def fig():
    """A small line plot in the style of the book."""
    with matplotlib.rc_context():
        figures.style()
        figure, ax = plt.subplots(figsize=(3, 2))
        ax.plot([0, 1, 0], color=figures.COLOURS["teacher"])
        yield figure


def luminance(colour: str) -> float:
    """Relative luminance of a colour, as WCAG defines it."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_role_has_its_own_colour():
    roles = {"teacher", "label-only", "distilled", "noise", "mask", "threshold", "ink"}
    assert roles == set(figures.COLOURS)
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)


@pytest.mark.parametrize("ground", ["#ffffff", "#d5dce3"])
def test_letters_stand_out_on_the_page_and_on_the_card(ground):
    lighter, darker = luminance(ground), luminance(figures.COLOURS["ink"])
    assert (lighter + 0.05) / (darker + 0.05) > 7


def test_webp_is_sharp_and_its_ground_transparent(fig):
    picture = Image.open(io.BytesIO(figures.to_webp(fig, scale=2)))
    assert picture.format == "WEBP"
    assert picture.size == (3 * 110 * 2, 2 * 110 * 2)
    assert picture.getpixel((1, 1))[3] == 0


def test_fewer_colours_weigh_less(fig):
    assert len(figures.to_webp(fig, colours=64)) < len(figures.to_webp(fig))


@pytest.mark.bad_input
def test_webp_names_what_it_was_given(fig):
    with pytest.raises(TypeError, match="expected a matplotlib Figure, got Axes"):
        figures.to_webp(fig.axes[0])
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        figures.to_webp(fig, scale=0)
    with pytest.raises(ValueError, match="colours must be between 2 and 256, got 300"):
        figures.to_webp(fig, colours=300)


def test_show_displays_caption_and_alternative_and_closes(fig, shown):
    figures.show(fig, "Rates < 1 & rising.", 'A line that says "up".')
    (bundle,) = shown
    assert bundle["text/plain"] == "Figure: Rates < 1 & rising."
    assert "<figcaption>Rates &lt; 1 &amp; rising.</figcaption>" in bundle["text/html"]
    assert 'alt="A line that says &quot;up&quot;."' in bundle["text/html"]
    assert re.search(r'width="330" height="220"', bundle["text/html"])
    assert not plt.get_fignums()


@pytest.mark.bad_input
@pytest.mark.parametrize("caption, alt, named", [("", "a", "caption"), ("a", "  ", "alt")])
def test_show_wants_both_texts(fig, shown, caption, alt, named):
    with pytest.raises(ValueError, match=f"{named} is empty"):
        figures.show(fig, caption, alt)
    with pytest.raises(TypeError, match="caption must be a string, got NoneType"):
        figures.show(fig, None, "a")
    assert not shown


def test_probabilities_are_bars_and_the_true_class_is_coloured():
    for p in (torch.tensor([0.7, 0.2, 0.1]), np.array([0.7, 0.2, 0.1])):
        _, ax = plt.subplots()
        figures.probabilities(ax, p, ["bag", "coat", "dress"], torch.tensor(1), "teacher")
        assert [bar.get_width() for bar in ax.patches] == pytest.approx([70, 20, 10])
        coloured = [
            matplotlib.colors.same_color(bar.get_facecolor(), figures.COLOURS["teacher"])
            for bar in ax.patches
        ]
        assert coloured == [False, True, False]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["bag", "coat", "dress"]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first class is on top
        assert ax.get_xlim() == (0, 100)
        plt.close()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "changed, message",
    [
        ({"p": torch.ones(3)}, r"p must be \[2\], one a name, got shape \[3\]"),
        ({"p": torch.tensor([math.nan, 1])}, "p holds values that are not finite"),
        ({"true": 2}, "true must be between 0 and 1, got 2"),
        ({"role": "student"}, "role must be one of teacher, .*, got 'student'"),
    ],
)
def test_probabilities_name_what_does_not_fit(changed, message):
    given = {"p": torch.tensor([0.5, 0.5]), "names": "ab", "true": 0, "role": "teacher"}
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match=message):
        figures.probabilities(ax, **(given | changed))
    plt.close()


@pytest.mark.parametrize("kind", ["float array", "bytes", "tensor that needs a gradient"])
def test_overlay_draws_image_heat_and_outline(kind):
    image = np.random.RandomState(0).rand(3, 32, 24)
    heat = np.zeros((4, 3))
    heat[1, 2] = 5
    if kind == "bytes":
        image = (image * 255).astype(np.uint8)
    elif kind != "float array":
        image, heat = torch.tensor(image), torch.tensor(heat, requires_grad=True)
    mask = np.zeros((32, 24), dtype=bool)
    mask[:10, 5:] = True

    _, ax = plt.subplots()
    figures.overlay(ax, image, heat, mask)
    ground, warm = ax.images
    assert ground.get_array().shape == (32, 24, 3)
    assert warm.get_array().shape == (32, 24)
    assert np.unravel_index(warm.get_array().argmax(), (32, 24))[0] in range(8, 16)
    assert warm.get_alpha().min() >= 0
    assert not any(spine.get_visible() for spine in ax.spines.values())
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    (outline,) = ax.collections
    # The object touches two edges, and its outline is closed all the same.
    for path in outline.get_paths():
        assert np.allclose(path.vertices[0], path.vertices[-1])


def test_overlay_frames_the_image_in_the_colour_of_the_role():
    _, ax = plt.subplots()
    figures.overlay(ax, np.zeros((3, 8, 8)), role="teacher")
    drawn = {mpl.colors.to_hex(spine.get_edgecolor()).upper() for spine in ax.spines.values()}
    assert drawn == {figures.COLOURS["teacher"]}
    assert all(spine.get_visible() for spine in ax.spines.values())
    with pytest.raises(ValueError, match="role must be one of teacher, .*, got 'student'"):
        figures.overlay(ax, np.zeros((3, 8, 8)), role="student")


@pytest.mark.parametrize("heat", [None, np.zeros((4, 4)), np.full((4, 4), -3.0)])
def test_overlay_of_a_flat_map_shows_the_image_alone(heat):
    _, ax = plt.subplots()
    figures.overlay(ax, np.zeros((3, 8, 8)), heat, mask=np.zeros((8, 8)))
    assert ax.images[1].get_alpha().max() == 0
    assert not ax.collections


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "image, heat, mask, message",
    [
        (np.zeros((8, 8, 3)), np.zeros((2, 2)), None, r"image must be \[3, H, W\]"),
        (np.zeros((3, 8, 8)), np.zeros((1, 2, 2)), None, r"heat must be \[h, w\]"),
        (np.zeros((3, 8, 8)), np.zeros((0, 2)), None, "not empty"),
        (np.zeros((3, 8, 8)), np.zeros((2, 2)), np.zeros((4, 4)), r"mask must be \[8, 8\]"),
        (np.zeros((3, 8, 8)), np.full((2, 2), np.nan), None, "heat holds values that are not"),
    ],
)
def test_overlay_names_what_does_not_fit(image, heat, mask, message):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match=message):
        figures.overlay(ax, image, heat, mask)


def test_say_shows_markdown_and_its_text(shown):
    figures.say("**KD** gains 9 points. ")
    assert shown == [
        {"text/markdown": "**KD** gains 9 points.", "text/plain": "**KD** gains 9 points."}
    ]
    with pytest.raises(ValueError, match="text is empty"):
        figures.say(" ")


def test_effects_are_drawn_where_they_are():
    told = Effect(0.1, 0.08, 0.12, 0.09, 0.11, 5)
    open_ = Effect(-0.01, -0.05, 0.03, -0.03, 0.01, 3)
    single = Effect(0.02, *[math.nan] * 4, 1)
    with matplotlib.rc_context():
        figures.style()
        fig, ax = plt.subplots()
        figures.effects(ax, {"A": told, "B": open_, "C": None, "D": single}, "points")
        zero, *lines = ax.get_lines()
        assert set(zero.get_xdata()) == {0}
        drawn = {}
        for line in lines:
            drawn.setdefault(int(line.get_ydata()[0]), []).append(line)
        thin, thick, dot = drawn[0]
        assert thin.get_xdata() == pytest.approx([8, 12]) and thick.get_xdata() == pytest.approx(
            [9, 11]
        )
        assert thin.get_linewidth() < thick.get_linewidth()
        assert dot.get_xdata() == pytest.approx([10])
        assert dot.get_markerfacecolor() == figures.COLOURS["distilled"]
        assert drawn[1][2].get_markerfacecolor() == "white"
        assert 2 not in drawn and [text.get_text() for text in ax.texts] == [" not run"]
        assert drawn[3][2].get_xdata() == pytest.approx([2])
        assert [label.get_text() for label in ax.get_yticklabels()] == list("ABCD")
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first name is on top
        plt.close(fig)
