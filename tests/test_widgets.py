"""The explorer: in a page without a kernel, and with ipywidgets 7, which has no Stack."""

import re

import ipywidgets
import matplotlib
import pytest
from ipywidgets.widgets import widget
from ipywidgets.widgets.widget_link import Link

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

from ckdlite import widgets  # noqa: E402


class Drawing:
    """A figure of each combination, remembering what was asked for."""

    def __init__(self):
        self.calls = []

    def draw(self, **values):
        self.calls.append(values)
        figure, ax = plt.subplots(figsize=(1, 1), dpi=30)
        ax.plot([0, sum(v for v in values.values() if not isinstance(v, str))])
        return figure

    def alt(self, **values):
        return "shows " + ", ".join(f"{name} {value}" for name, value in values.items())


@pytest.fixture
def drawing():
    return Drawing()


@pytest.fixture
def page(monkeypatch):
    """What was displayed: the explorer's bundle, then the still picture's."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: bundles.append(data))
    return bundles


@pytest.fixture
def without_stack(monkeypatch):
    """ipywidgets as it is in Colab."""
    monkeypatch.delattr(ipywidgets, "Stack")


def box_of(page):
    """The explorer's widget."""
    return widget._instances[page[0]["application/vnd.jupyter.widget-view+json"]["model_id"]]


def alt_of(picture):
    """The alternative text of an HTML widget or of a piece of HTML."""
    return re.search(r'alt="([^"]*)"', getattr(picture, "value", picture)).group(1)


def visible(stack):
    """The picture that nested stacks show."""
    while hasattr(stack, "selected_index"):
        stack = stack.children[stack.selected_index]
    return stack


def leaves(stack):
    """All pictures in nested stacks."""
    if not hasattr(stack, "selected_index"):
        return [stack]
    return [leaf for child in stack.children for leaf in leaves(child)]


def test_one_axis_draws_each_value_once(drawing, page):
    widgets.explorer(drawing.draw, alt=drawing.alt, caption="Look.", beta=[0.5, 0.75, 1.0])
    slider, stack = box_of(page).children
    assert drawing.calls == [{"beta": 0.5}, {"beta": 0.75}, {"beta": 1.0}]
    assert [alt_of(leaf) for leaf in leaves(stack)] == [
        "shows beta 0.5",
        "shows beta 0.75",
        "shows beta 1.0",
    ]
    assert len({leaf.value.split("base64,")[1] for leaf in leaves(stack)}) == 3
    assert [text for text, _ in slider.options] == ["0.5", "0.75", "1"]


def test_two_axes_start_where_told_and_show_labels(drawing, page):
    widgets.explorer(
        drawing.draw,
        alt=drawing.alt,
        caption="Look.",
        T=[1, 2, 4],
        who={"the teacher": "t", "the student": "s"},
        labels={"T": "timesteps T"},
        start={"T": 4, "who": "s"},
    )
    first, second, stack = box_of(page).children
    assert (first.description, second.description) == ("timesteps T", "who")
    assert (first.index, second.index) == (2, 1)
    assert [text for text, _ in second.options] == ["the teacher", "the student"]
    assert len(leaves(stack)) == 6
    assert alt_of(visible(stack)) == "shows T 4, who s"
    assert alt_of(page[1]["text/html"]) == "shows T 4, who s"


def test_three_axes_nest(drawing, page):
    widgets.explorer(drawing.draw, alt=drawing.alt, caption="Look.", a=[1, 2], b=[3, 4], c=[5, 6])
    assert [alt_of(leaf) for leaf in leaves(box_of(page).children[-1])][5] == "shows a 2, b 3, c 6"


def test_every_stack_is_linked_to_its_slider(drawing, page):
    before = set(widget._instances)
    widgets.explorer(drawing.draw, alt=drawing.alt, caption="Look.", a=[1, 2, 3], b=[4, 5])
    a, b, stack = box_of(page).children
    links = [w for key, w in widget._instances.items() if key not in before and isinstance(w, Link)]
    assert {(link.source[0], link.target[0]) for link in links} == {
        (a, stack),
        *((b, child) for child in stack.children),
    }
    assert {(link.source[1], link.target[1]) for link in links} == {("index", "selected_index")}


def test_text_is_short_and_the_same_everywhere(drawing, page):
    widgets.explorer(
        drawing.draw, alt=drawing.alt, caption="Look.", labels={"b": "leak β"}, b=[1, 2], c=[3]
    )
    assert page[0]["text/plain"] == "Explorer: Look. (leak β: 2 values, c: 1 values)"
    assert page[1]["text/plain"] == "Still picture at leak β = 1, c = 3"


def test_still_picture_is_hidden_outside_the_book(drawing, page):
    widgets.explorer(drawing.draw, alt=drawing.alt, caption="A < B.", b=[1, 2])
    html = page[1]["text/html"]
    assert 'class="ckd-figure ckd-static"' in html
    assert re.search(r'<img [^>]*style="[^"]*display:none;"', html)
    assert "A &lt; B." in html


def test_without_stack_the_kernel_redraws_once_each(drawing, page, without_stack):
    widgets.explorer(
        drawing.draw, alt=drawing.alt, caption="Look.", a=[1, 2, 3], b=[4, 5], start={"b": 5}
    )
    a, b, picture = box_of(page).children
    assert drawing.calls == [{"a": 1, "b": 5}]
    a.index = 2
    assert alt_of(picture) == "shows a 3, b 5"
    b.index = 0
    assert alt_of(picture) == "shows a 3, b 4"
    b.index = 1
    assert alt_of(picture) == "shows a 3, b 5"
    assert len(drawing.calls) == 3


def test_no_figure_stays_open(drawing, page):
    widgets.explorer(drawing.draw, alt=drawing.alt, caption="Look.", a=[1, 2, 3])
    assert not plt.get_fignums()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"caption": " "}, ValueError, "caption is empty"),
        ({"alt": "a picture"}, TypeError, "alt must be a function, got str"),
        ({"alt": lambda a: ""}, ValueError, r"alt\(\{'a': 1\}\) is empty"),
        ({"draw": None}, TypeError, "draw must be a function, got NoneType"),
        ({"draw": lambda a: a}, TypeError, "draw must return a matplotlib Figure, got int for"),
        ({"a": []}, ValueError, "axis a has no values"),
        ({"a": "abc"}, TypeError, "axis a must be a sequence of values"),
        ({"a": 3}, TypeError, "axis a must be a sequence of values"),
        ({"a": [0.1, 0.1]}, ValueError, "axis a shows two of its values alike"),
        ({"a": range(121)}, ValueError, "121 pictures are too many for a page, at most 120"),
        ({"start": {"a": 9}}, ValueError, r"start of a is 9, its values are \[1, 2\]"),
        ({"start": {"b": 9}}, ValueError, r"start names \['b'\], the axes are \['a'\]"),
        ({"labels": {"b": "b"}}, ValueError, r"labels names \['b'\]"),
    ],
)
def test_explorer_names_what_is_wrong(drawing, page, change, error, message):
    given = {"draw": drawing.draw, "alt": drawing.alt, "caption": "Look.", "a": [1, 2]} | change
    with pytest.raises(error, match=message):
        widgets.explorer(given.pop("draw"), **given)
    assert not page


@pytest.mark.bad_input
def test_explorer_without_an_axis(drawing):
    with pytest.raises(ValueError, match="at least one axis"):
        widgets.explorer(drawing.draw, alt=drawing.alt, caption="Look.")


@pytest.mark.bad_input
def test_explorer_too_heavy_for_a_page(drawing, page, monkeypatch):
    monkeypatch.setattr(widgets, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="the 2 pictures take .* bytes, a page can hold 100"):
        widgets.explorer(drawing.draw, alt=drawing.alt, caption="Look.", a=[1, 2])
    assert not page
