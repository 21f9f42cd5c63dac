"""The one explorer: a figure behind sliders, alive in a static page without a kernel.

Every picture is drawn once, when the cell runs. In the page, plain links between the sliders and a
stack of pictures do the rest, so a key press costs nothing but showing another picture.
Needs matplotlib and ipywidgets: ``pip install 'ckdlite[chapters]'``.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence

from ckdlite import figures

try:
    import ipywidgets
except ImportError as error:
    raise ImportError(
        "ckdlite.widgets needs ipywidgets, which is not installed: pip install 'ckdlite[chapters]'"
    ) from error

#: How many pictures an explorer may have.
MAX_FRAMES = 120
#: How many bytes of a page they may take.
MAX_BYTES = 1_100_000
# A frame is one of many on its page: sharp enough, and light.
#: The resolution of a picture, in that of the figure.
SCALE = 1.5
#: How many colours a picture has.
COLOURS = 256


def explorer(
    draw: Callable,
    *,
    alt: Callable[..., str],
    caption: str,
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, object] | None = None,
    **axes: Sequence | Mapping[str, object],
) -> None:
    """Display the figures of ``draw`` behind one slider for each axis.

    ``draw(**values)`` returns a matplotlib figure and ``alt(**values)`` says in words what it
    shows. Each further keyword is an axis: a sequence of values, or a mapping from the text shown
    to the value. ``labels`` names an axis for the reader ("leak β") and ``start`` gives the value
    it starts at, its first one if not given. The figures should all have one size::

        explorer(draw, alt=describe, caption="A higher leak forgets more slowly.",
                 beta=[0.5, 0.7, 0.9], labels={"beta": "leak β"}, start={"beta": 0.9})

    All combinations are drawn at once, so that the sliders work in a page without a kernel. With
    ipywidgets 7, which has no ``Stack``, a live kernel draws each combination when it is asked for.

    Raises TypeError or ValueError when a text is missing, an axis is empty, a start is not among
    its values, ``draw`` returns no figure, or the pictures are too many or too heavy for a page.
    """
    caption = figures._text("caption", caption)
    for name, function in (("draw", draw), ("alt", alt)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")
    if not axes:
        raise ValueError("an explorer needs at least one axis, for example beta=[0.5, 0.9]")
    axes = {name: _options(name, values) for name, values in axes.items()}
    labels, start = dict(labels or {}), dict(start or {})
    for what, given in (("labels", labels), ("start", start)):
        if unknown := sorted(set(given) - set(axes)):
            raise ValueError(f"{what} names {unknown}, the axes are {sorted(axes)}")
    count = math.prod(len(shown) for shown in axes.values())
    if count > MAX_FRAMES:
        raise ValueError(
            f"{count} pictures are too many for a page, at most {MAX_FRAMES}: give fewer values"
        )

    position = {name: _locate(name, shown, start) for name, shown in axes.items()}
    sliders = {
        name: ipywidgets.SelectionSlider(
            options=list(shown.items()),
            index=position[name],
            description=labels.get(name, name),
            continuous_update=True,
            layout=ipywidgets.Layout(width="100%"),
            style={"description_width": "initial"},
        )
        for name, shown in axes.items()
    }
    default = tuple(position.values())
    frames = _Frames(draw, alt, axes, default)
    if hasattr(ipywidgets, "Stack"):
        pictures = _stacked(frames, sliders, axes, default)
        if frames.bytes > MAX_BYTES:
            raise ValueError(
                f"the {count} pictures take {frames.bytes:,} bytes, a page can hold {MAX_BYTES:,}: "
                "give fewer values, a smaller figure or fewer details"
            )
    else:
        pictures = _redrawn(frames, sliders, default)
    box = ipywidgets.VBox([*sliders.values(), pictures])
    box.add_class("ckd-explorer")
    _publish(box, frames.still, caption, axes, labels, default)


class _Frames:
    """The pictures of an explorer, each drawn once; ``bytes`` is what they weigh in the page.

    ``still`` is the one at ``default`` once more, hidden, for print and without scripts.
    """

    def __init__(
        self, draw: Callable, alt: Callable, axes: Mapping[str, Mapping], default: tuple[int, ...]
    ):
        self.draw, self.alt = draw, alt
        self.values = {name: list(shown.values()) for name, shown in axes.items()}
        self.tags: dict[tuple[int, ...], str] = {}
        self.default, self.still = default, ""
        self.bytes = 0

    def tag(self, index: tuple[int, ...]) -> str:
        """The ``<img>`` of one combination, given the position on each axis."""
        if index not in self.tags:
            values = {
                name: choices[at]
                for (name, choices), at in zip(self.values.items(), index, strict=True)
            }
            description = figures._text(f"alt({values})", self.alt(**values))
            fig = self.draw(**values)
            if not isinstance(fig, figures.Figure):
                raise TypeError(
                    f"draw must return a matplotlib Figure, got {type(fig).__name__} for {values}"
                )
            self.tags[index] = figures._image_tag(fig, description, SCALE, COLOURS)
            if index == self.default:
                hidden = "display:none;"
                self.still = figures._image_tag(fig, description, SCALE, COLOURS, css=hidden)
            figures.plt.close(fig)
            self.bytes += len(self.tags[index])
        return self.tags[index]


def _stacked(frames: _Frames, sliders: Mapping, axes: Mapping, default: tuple[int, ...]):
    """Stacks within stacks, one level an axis, linked to the sliders in the page itself."""
    # One layout and one style for all pictures: each would cost the page a few hundred bytes.
    layout = ipywidgets.Layout(width="100%", margin="0")
    look = ipywidgets.HTML().style

    def level(index: tuple[int, ...]):
        depth = len(index)
        if depth == len(sliders):
            return ipywidgets.HTML(frames.tag(index), layout=layout, style=look)
        name = list(sliders)[depth]
        stack = ipywidgets.Stack(
            [level((*index, at)) for at in range(len(axes[name]))],
            selected_index=default[depth],
            layout=layout,
        )
        ipywidgets.jslink((sliders[name], "index"), (stack, "selected_index"))
        return stack

    return level(())


def _redrawn(frames: _Frames, sliders: Mapping, default: tuple[int, ...]):
    """One picture that the kernel replaces when a slider moves."""
    picture = ipywidgets.HTML(frames.tag(default), layout=ipywidgets.Layout(width="100%"))

    def update(_change):
        picture.value = frames.tag(tuple(slider.index for slider in sliders.values()))

    for slider in sliders.values():
        slider.observe(update, names="index")
    return picture


def _publish(box, still: str, caption: str, axes: Mapping, labels: Mapping, default) -> None:
    """Display the explorer, then its caption with a still picture for print and without scripts.

    The still picture is hidden where nothing but a notebook shows it; the style sheet of the book
    shows it wherever the sliders are not.
    """
    from IPython.display import display

    at = ", ".join(
        f"{labels.get(name, name)} = {list(shown)[index]}"
        for (name, shown), index in zip(axes.items(), default, strict=True)
    )
    sizes = ", ".join(
        f"{labels.get(name, name)}: {len(shown)} values" for name, shown in axes.items()
    )
    display(
        {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": box.model_id,
            },
            "text/plain": f"Explorer: {caption} ({sizes})",
        },
        raw=True,
    )
    display(
        {
            "text/html": (
                f'<figure class="ckd-figure ckd-static" style="margin:1em 0">{still}<figcaption>'
                f'{html.escape(caption)} <span class="ckd-at" style="display:none">'
                f"Shown at {html.escape(at)}.</span></figcaption></figure>"
            ),
            "text/plain": f"Still picture at {at}",
        },
        raw=True,
    )


def _options(name: str, values) -> dict[str, object]:
    """An axis as a mapping from the text shown to the value."""
    if isinstance(values, Mapping):
        shown = {str(key): value for key, value in values.items()}
    elif isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(
            f"axis {name} must be a sequence of values or a mapping from text to value, "
            f"got {values!r}"
        )
    else:
        values = list(values)
        shown = {f"{v:g}" if isinstance(v, float) else str(v): v for v in values}
        if len(shown) < len(values):
            raise ValueError(f"axis {name} shows two of its values alike: {values}")
    if not shown:
        raise ValueError(f"axis {name} has no values")
    return shown


def _locate(name: str, shown: Mapping[str, object], start: Mapping[str, object]) -> int:
    """The position an axis starts at."""
    if name not in start:
        return 0
    values = list(shown.values())
    if start[name] not in values:
        raise ValueError(f"start of {name} is {start[name]!r}, its values are {values}")
    return values.index(start[name])
