"""Draw the picture of the README: where three networks look, on three of the six scenes.

python experiments/make_picture.py
"""

from pathlib import Path

import torch

from ckdlite import data, figures
from ckdlite.measure import predict
from ckdlite.networks import pretrained, record
from ckdlite.saliency import grad_cam, spike_map

PICTURE = Path(__file__).parent.parent / "book" / "figures" / "gaze.png"
SCENES = ("lost in clutter", "label-only wrong", "SAMD moves")


def main() -> None:
    figures.style()
    scenes, names = data.cast()
    images = data.normalise(scenes.images)
    teacher = pretrained("teacher")
    gazes = {"teacher": grad_cam(teacher, "stage3", images, scenes.labels)[0]}
    answers = {"teacher": predict(teacher, images).argmax(1)}
    for name in ("label-only", "distilled"):
        student = pretrained(name)
        with torch.no_grad(), record(student, "stage3") as features:
            answers[name] = student(images).mean(0).argmax(1)
        gazes[name] = spike_map(features["stage3"])

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
