"""Draw the picture of the README: where three networks look, on three of the six scenes.

python experiments/make_picture.py
"""

from pathlib import Path

from train_shipped import maps

from ckdlite import data, figures
from ckdlite.measure import predict
from ckdlite.networks import pretrained

PICTURE = Path(__file__).parent.parent / "book" / "figures" / "gaze.png"
SCENES = ("lost in clutter", "label-only wrong", "SAMD moves")


def main() -> None:
    figures.style()
    scenes, names = data.cast()
    images = data.normalise(scenes.images)
    gazes, answers = {}, {}
    for name in ("teacher", "label-only", "distilled"):
        net = pretrained(name)
        gazes[name] = maps(net, images, scenes.labels)
        answers[name] = predict(net, images).argmax(1)

    fig, axes = figures.plt.subplots(3, 4, figsize=(6.4, 5.6))
    for row, scene in zip(axes, SCENES, strict=True):
        i = names.index(scene)
        figures.overlay(row[0], scenes.images[i], None, scenes.masks[i])
        row[0].set_title(data.CLASSES[scenes.labels[i]], fontsize=9)
        for ax, name in zip(row[1:], gazes, strict=True):
            figures.overlay(ax, scenes.images[i], gazes[name][i], scenes.masks[i], name)
            right = "✓" if answers[name][i] == scenes.labels[i] else "✗"
            ax.set_title(f"{name}: {data.CLASSES[answers[name][i]]} {right}", fontsize=9)
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE, dpi=150, facecolor="white")
    print(f"{PICTURE.name}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
