"""The look of every figure: one colour a role, one style, one way onto the page.

Needs matplotlib: ``pip install 'ckdlite[chapters]'``. Every chapter of the book uses this module.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .results import Effect

try:
    import matplotlib as mpl
    from matplotlib import patheffects
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image
except ImportError as error:
    raise ImportError(
        "ckdlite.figures draws with matplotlib, which is not installed: "
        "pip install 'ckdlite[chapters]'"
    ) from error

#: One colour a role, from Okabe and Ito's palette, told apart under the common kinds of colour
#: blindness.
COLOURS: dict[str, str] = {
    "teacher": "#0072B2",
    "label-only": "#E69F00",
    "distilled": "#009E73",
    "noise": "#CC79A7",
    "mask": "#56B4E9",
    "threshold": "#D55E00",
    "ink": "#1F2933",
}

#: Of a figure. At 6.4 inches wide it then fills the text column of the book.
PIXELS_PER_INCH = 110


def style() -> None:
    """Set matplotlib's defaults to the plotting style of the book.

    The ground is transparent and the ink dark: the page puts a light card behind each figure in
    its dark theme. Letters stay readable when a phone shows the figure at half size.
    """
    ink = COLOURS["ink"]
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.2),
            "figure.dpi": PIXELS_PER_INCH,
            "savefig.dpi": PIXELS_PER_INCH,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "axes.facecolor": "none",
            "axes.edgecolor": ink,
            "axes.labelcolor": ink,
            "axes.titlecolor": ink,
            "text.color": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "font.family": "DejaVu Sans",
            "font.size": 13,
            "axes.titlesize": 13,
            "axes.labelsize": 13,
            "xtick.labelsize": 12,
            "ytick.labelsize": 12,
            "legend.fontsize": 12,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "xtick.major.width": 0.8,
            "ytick.major.width": 0.8,
            "lines.linewidth": 2.0,
            "lines.solid_capstyle": "round",
            "axes.prop_cycle": mpl.cycler(
                color=[COLOURS[role] for role in ("teacher", "label-only", "distilled", "noise")]
            ),
            "image.interpolation": "nearest",
        }
    )


def to_webp(fig: Figure, scale: float | int = 2.0, colours: int | None = None) -> bytes:
    """Render a figure to WebP bytes, without loss and with a transparent ground.

    ``scale`` multiplies the figure's own resolution; 2 is sharp on a dense screen. ``colours``
    (2 to 256) reduces the picture to so many colours, which halves its size or better.

    Raises TypeError when ``fig`` is no matplotlib figure, ValueError for a number out of range.
    """
    if not isinstance(fig, Figure):
        raise TypeError(f"expected a matplotlib Figure, got {type(fig).__name__}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if colours is not None and not 2 <= colours <= 256:
        raise ValueError(f"colours must be between 2 and 256, got {colours}")
    raw, packed = io.BytesIO(), io.BytesIO()
    fig.savefig(raw, format="png", dpi=fig.dpi * scale, pil_kwargs={"compress_level": 1})
    picture = Image.open(raw).convert("RGBA")
    if colours is not None:
        picture = picture.quantize(colours, method=Image.Quantize.FASTOCTREE).convert("RGBA")
    # On line art lossless WebP is smaller than lossy, and sharp.
    picture.save(packed, format="webp", lossless=True, quality=80, method=2)
    return packed.getvalue()


def _image_tag(
    fig: Figure, alt: str, scale: float | int = 2.0, colours: int | None = None, css: str = ""
) -> str:
    """The HTML ``<img>`` of a figure, its picture inside the tag as WebP.

    ``alt`` says in words what the picture shows; ``css`` is the tag's own style.
    """
    picture = base64.b64encode(to_webp(fig, scale, colours)).decode("ascii")
    # The size in the tag keeps the page from jumping while the picture is decoded.
    width, height = (round(inches * PIXELS_PER_INCH) for inches in fig.get_size_inches())
    return (
        f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" '
        f'style="max-width:100%;height:auto;{css}" src="data:image/webp;base64,{picture}">'
    )


def show(fig: Figure, caption: str, alt: str) -> None:
    """Display a figure in a notebook with its caption and its alternative text, then close it.

    ``caption`` says what to notice; ``alt`` says in words what the picture shows. The plain-text
    form of the output is the caption, so a test of the notebook compares that and no pixels.

    Raises ValueError when a text is empty and TypeError when ``fig`` is no figure.
    """
    from IPython.display import display

    caption, alt = _text("caption", caption), _text("alt", alt)
    picture = _image_tag(fig, alt)
    plt.close(fig)
    display(
        {
            "text/html": (
                f'<figure class="ckd-figure" style="margin:1em 0">{picture}'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            ),
            "text/plain": f"Figure: {caption}",
        },
        raw=True,
    )


def say(text: str) -> None:
    """Display a paragraph of Markdown, so that its numbers can come from a file.

    The plain-text form is the text itself: a test of the notebook compares it.

    Raises ValueError when the text is empty.
    """
    from IPython.display import display

    text = _text("text", text)
    display({"text/markdown": text, "text/plain": text}, raw=True)


def effects(
    ax: Axes, found: Mapping[str, Effect | None], xlabel: str, times: float | int = 100
) -> None:
    """Draw differences with their intervals, one below the other, around a line at zero.

    ``found`` maps a name to an `Effect`, or to None for what was not run, which is said in its
    row. The thin line is Student's interval, the thick one the bootstrap's. A difference that is
    told from zero is filled, any other is hollow. ``times`` multiplies the values: 100 makes
    points of shares.
    """
    ax.axvline(0, color=COLOURS["ink"], linewidth=1)
    for place, one in enumerate(found.values()):
        if one is None:
            ax.text(0, place, " not run", va="center", fontsize=11, style="italic")
            continue
        colour = COLOURS["distilled"]
        ax.plot([times * one.low, times * one.high], [place] * 2, color=colour, linewidth=1.5)
        ax.plot(
            [times * one.boot_low, times * one.boot_high], [place] * 2, color=colour, linewidth=4
        )
        face = colour if one.told else "white"
        ax.plot(times * one.mean, place, "o", color=colour, markerfacecolor=face, markersize=8)
    ax.set(xlabel=xlabel, yticks=range(len(found)), ylim=(len(found) - 0.5, -0.5))
    ax.set_yticklabels(found)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def probabilities(
    ax: Axes, p: Tensor | np.ndarray, names: Sequence[str], true: int | Tensor, role: str
) -> None:
    """Draw one image's class probabilities as bars, the first class on top.

    ``p`` is ``[K]``, in 0..1, and ``names`` has a name a class. The bar of the class ``true`` has
    the colour of ``role``, a name in `COLOURS`; the others are grey.

    Raises ValueError when the numbers of names and probabilities differ, ``true`` is no class, a
    value is not finite or the role is unknown.
    """
    p, true = _array("p", p), int(true)
    if p.shape != (len(names),):
        raise ValueError(f"p must be [{len(names)}], one a name, got shape {list(p.shape)}")
    if not 0 <= true < len(p):
        raise ValueError(f"true must be between 0 and {len(p) - 1}, got {true}")
    if role not in COLOURS:
        raise ValueError(f"role must be one of {', '.join(COLOURS)}, got {role!r}")
    rows = range(len(p))
    colours = [COLOURS[role] if k == true else "#B8C1CA" for k in rows]
    ax.barh(rows, 100 * p, color=colours)
    ax.set(xlim=(0, 100), xlabel="probability, %", yticks=rows)
    ax.set_yticklabels(names, fontsize=10)
    ax.invert_yaxis()


def overlay(
    ax: Axes,
    image: Tensor | np.ndarray,
    heat: Tensor | np.ndarray | None = None,
    mask: Tensor | np.ndarray | None = None,
    role: str | None = None,
) -> None:
    """Draw a saliency map over an image, the outline of the object, and a frame in a role's colour.

    ``image`` is RGB ``[3, H, W]``, floats in 0..1 or bytes. ``heat`` is ``[h, w]`` of any size and
    scale: it is brought to 0..1 by its own minimum and maximum and enlarged bilinearly to the
    image; None draws the image alone. ``mask`` is ``[H, W]``, true on the object. ``role`` is a
    name in `COLOURS`. Tensors and NumPy arrays are both taken.

    Raises ValueError when a shape does not fit, a value is not finite or a role is unknown.
    """
    image, heat = _array("image", image), _array("heat", np.zeros((1, 1)) if heat is None else heat)
    if role is not None and role not in COLOURS:
        raise ValueError(f"role must be one of {', '.join(COLOURS)}, got {role!r}")
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be [3, H, W], got shape {list(image.shape)}")
    if heat.ndim != 2 or heat.size == 0:
        raise ValueError(f"heat must be [h, w] and not empty, got shape {list(heat.shape)}")
    height, width = image.shape[1:]
    pixels = image.transpose(1, 2, 0)
    ax.imshow(pixels if pixels.dtype == np.uint8 else pixels.clip(0, 1).astype(np.float32))

    heat = heat.astype(np.float32) - np.float32(heat.min())
    heat = heat / heat.max() if heat.max() > 0 else heat
    large = (
        torch.nn.functional.interpolate(
            torch.from_numpy(heat)[None, None], size=(height, width), mode="bilinear"
        )[0, 0]
        .clamp(0, 1)
        .numpy()
    )
    ax.imshow(large, cmap="inferno", vmin=0, vmax=1, alpha=0.85 * large)

    if mask is not None:
        mask = _array("mask", mask)
        if mask.shape != (height, width):
            raise ValueError(
                f"mask must be [{height}, {width}] like the image, got shape {list(mask.shape)}"
            )
        if mask.any():
            # A border of nothing closes the outline of an object that touches the edge.
            lines = ax.contour(
                np.arange(-1, width + 1),
                np.arange(-1, height + 1),
                np.pad(mask.astype(np.float32), 1),
                levels=[0.5],
                colors=COLOURS["mask"],
                linewidths=2,
            )
            lines.set_path_effects([patheffects.withStroke(linewidth=3.5, foreground="black")])
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=role is not None, color=COLOURS.get(role), linewidth=4)


def _text(name: str, value: str) -> str:
    """The text itself when it says something, a clear error when it does not."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} is empty: a reader who cannot see the figure needs it")
    return value.strip()


def _array(name: str, value: Tensor | np.ndarray) -> np.ndarray:
    """A finite NumPy array from a tensor or an array."""
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds values that are not finite")
    return value
