"""Formats that Datumaro reads (an extra of dyn_d2)."""

from pathlib import Path

from dyn_d2.data.validity.coco import DataError

from .items import Found, Item, Shape

DATUMARO = "datumaro:"


def read_datumaro(path: Path, kind: str) -> Found:
    """Boxes and polygons of a data set in one of Datumaro's formats.

    Raises:
        ImportError: Datumaro is not installed.
        DataError: it does not know the format, or cannot read the data.
    """
    import datumaro

    try:
        content = datumaro.Dataset.import_from(str(path), kind)
        labels = tuple(label.name for label in content.categories()[datumaro.AnnotationType.label])
    except Exception as error:  # its errors have no common class
        raise DataError(f"Datumaro cannot read {path} as {kind}: {type(error).__name__}: {str(error)[:300]}") from error
    found = Found(labels=labels)
    for item in content:
        shapes = []
        for annotation in item.annotations:
            name = type(annotation).__name__
            if name not in ("Bbox", "Polygon") or annotation.label is None:
                found.left_out[name] += 1
                continue
            x, y, w, h = annotation.get_bbox()
            points = tuple(zip(annotation.points[::2], annotation.points[1::2], strict=True))
            polygons = (tuple((float(px), float(py)) for px, py in points),) if name == "Polygon" else ()
            shapes.append(Shape(labels[annotation.label], (x, y, x + w, y + h), polygons))
        height, width = item.media.size if item.media is not None and item.media.size else (None, None)
        name = getattr(item.media, "path", None) or item.id
        found.items.append(Item(str(name), width, height, tuple(shapes)))
    return found
