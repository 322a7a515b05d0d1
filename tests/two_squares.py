"""Pictures with two squares, and the json of their boxes."""

import json

import numpy as np
from PIL import Image

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0)}
BOXES = ((1, [4, 5, 20, 20], 0), (2, [30, 10, 20, 20], 0), (2, [0, 0, 3, 30], 0), (1, [0, 0, 40, 40], 1))


def write_boxes(folder, names=tuple(COLOURS)) -> str:
    """A json of two pictures with a red square at the left and a green one at the right; tiny boxes and crowds beside
    them."""
    annotations = []
    for image in (2, 1):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[5:25, 4:24], picture[10:30, 30:50] = COLOURS["red"], COLOURS["green"]
        Image.fromarray(picture).save(folder / f"{image}.png")
        for category, box, crowd in BOXES:
            annotations.append({"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd, "area": 400})
    annotations = [{"id": i + 1, **annotation} for i, annotation in enumerate(annotations)]
    images = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in (1, 2)]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)
