"""Choose the six test scenes that every chapter shows, and write `ckdlite/assets/cast.json`.

    python experiments/choose_cast.py

Each role is a rule over the shipped networks, not a matter of taste: among the first 1,000 test
scenes that meet its condition, the one with the highest score is taken. No class is shown twice.
"""

import json

import torch
from train_shipped import maps

from ckdlite._assets import FOLDER
from ckdlite.data import CLASSES, cluttered, normalise
from ckdlite.measure import predict
from ckdlite.networks import pretrained
from ckdlite.saliency import mask_overlap, pointing_game

STUDENTS = ("label-only", "samd", "distilled")


def main() -> None:
    scenes = cluttered("test", 1000)
    images, labels, masks = normalise(scenes.images), scenes.labels, scenes.masks
    right, sure, hit, share = {}, {}, {}, {}
    for name in ("teacher", *STUDENTS):
        net = pretrained(name)
        probability = predict(net, images).softmax(1)
        looks = maps(net, images, labels)
        right[name] = probability.argmax(1) == labels
        sure[name] = probability.gather(1, labels[:, None])[:, 0]
        hit[name] = pointing_game(looks, masks) > 0.5
        share[name] = mask_overlap(looks, masks)

    everyone = torch.stack([right[n] for n in right]).all(0)
    gain = share["samd"] - share["label-only"]
    lost = ~hit["label-only"] & hit["teacher"]
    roles = [
        (
            "easy",
            "all four networks are right and look at the object",
            everyone & torch.stack([hit[n] for n in hit]).all(0),
            torch.stack([sure[n] for n in sure]).amin(0),
        ),
        (
            "lost in clutter",
            "the label-only student is right, but its spikes are on the clutter",
            everyone & lost,
            -share["label-only"],
        ),
        (
            "label-only wrong",
            "the label-only student is wrong, teacher and distilled student are right",
            ~right["label-only"] & right["teacher"] & right["distilled"],
            sure["distilled"] - sure["label-only"],
        ),
        (
            "teacher wrong",
            "the teacher is wrong, though it looks at the object",
            ~right["teacher"] & hit["teacher"],
            -sure["teacher"],
        ),
        (
            "SAMD moves",
            "SAMD brings the highest point of the spike map onto the object",
            lost & hit["samd"],
            gain,
        ),
        (
            "SAMD does not",
            "the highest point of the spike map stays off the object in spite of SAMD",
            lost & ~hit["samd"],
            -gain.abs(),
        ),
    ]
    cast, shown = [], set()
    for name, why, condition, value in roles:
        free = condition & torch.tensor([int(k) not in shown for k in labels])
        index = int(value.where(free, torch.tensor(-torch.inf)).argmax())
        assert free[index], f"no scene is left for {name!r}"
        shown.add(int(labels[index]))
        cast.append({"name": name, "index": index, "why": why})
        print(f"{name}: scene {index}, {CLASSES[labels[index]]}, of {int(condition.sum())}")
    (FOLDER / "cast.json").write_text(json.dumps(cast, indent=2) + "\n")


if __name__ == "__main__":
    main()
