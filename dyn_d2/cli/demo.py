"""What a model sees in images, with nothing but a checkpoint of dyn_d2, which carries its config and class names:
detectors, semantic segmentors, classifiers, TAFE-Net, cascades.

    dyn-d2 demo --weights output/model_final.pth --output pictures photo.jpg folder/ "shots/*.png" clip.mp4

Images come from files, folders, patterns, videos and http(s) addresses. For each one a picture is written (for a video
another video), and for all together

    detections.json   what was found, by file: objects, or the percent of the pixels of each label, or the best classes
    coco.json         of a detector: the objects as COCO json with scores, masks as RLE
    NAME_MAP.png      of a segmentor: each label map, pixels are numbers of labels (of a video NAME_FRAME_MAP.png)
    routes.json       of a dynamic network: which parts ran for which image, and what that cost

Where no detection reaches the threshold, the best ones are shown with their scores. Pictures of a semantic segmentor
show the classes of the pixels, at each depth of the concept tree where there is one (DSSPN), and the stages that
settled them (Layer Cascade). Labels are those of the first set in DATASETS.TEST; a model of several sets predicts
another one's after --opts DATASETS.TEST "('NAME',)".
"""

import argparse
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dyn_d2.data.image_sources import Shown, expand, frames_per_second, is_address, is_video, read
from dyn_d2.engine.predictor import Answer, ImagePredictor, Labels, load_predictor
from dyn_d2.evaluation.boxes_on_image import best_of, labels_of, picture, picture_names, picture_with_lines
from dyn_d2.evaluation.label_figures import draw_label_maps
from dyn_d2.evaluation.written_results import CocoFile, route_as_json, write_label_maps
from dyn_d2.utils.atomic import atomic_write, write_json
from dyn_d2.utils.commands import add_picture_options
from dyn_d2.utils.errors import UserError

from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger

logger = logging.getLogger("dyn_d2.demo")


def _as_json(found: Instances, classes: list[str]) -> list[dict]:
    return [
        {"class": classes[label], "score": round(score, 4), "box_xyxy": [round(value, 2) for value in box]}
        for label, score, box in zip(
            found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist(), strict=True
        )
    ]


@dataclass
class Writer:
    """Pictures and results of a run of the command.

    Attributes:
        threshold, top: what is drawn, see ``best_of``.
        every: so manieth frames of videos are shown.
        found, routes: what goes into the json files, by image.
        unreadable: names of what cannot be read.
    """

    predictor: ImagePredictor
    output: Path
    threshold: float
    top: int
    every: int = 1
    found: dict[str, Any] = field(default_factory=dict)
    routes: dict[str, Any] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    coco: CocoFile | None = None
    _videos: dict[str, Any] = field(default_factory=dict)
    _sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, shown: Shown, answer: Answer[Any], file: str) -> None:
        """One image: its picture ``file`` (a frame's goes into the video of that name), and its results."""
        assert shown.image is not None
        stem = Path(file).stem + (f"_{shown.name.rpartition('#')[2]}" if shown.video else "")  # a frame's number
        figure, words, self.found[shown.name] = self._look(shown.image, answer.found, shown.name, stem)
        words += f" (by {answer.model})" if answer.model else ""
        logger.info("%s: %s", shown.name, words)
        if answer.route is not None:
            self.routes[shown.name] = route_as_json(answer.route)
        if shown.video:
            self._add_frame(shown.video, file, figure)
            return
        with atomic_write(self.output / file, "wb") as handle:
            figure.savefig(handle, format="png")

    def finish(self) -> None:
        """Write the json files, and end the videos."""
        for video in self._videos.values():
            video.release()
        write_json(self.output / "detections.json", self.found)
        if self.routes:
            write_json(self.output / "routes.json", self.routes)
        if self.coco is not None:
            write_json(self.output / "coco.json", self.coco.content())

    def _look(self, image: np.ndarray, found: Any, name: str, stem: str) -> tuple[Figure, str, Any]:
        """The picture of an image, what it shows in words, and what goes into detections.json."""
        if isinstance(found, Instances):
            self.coco = self.coco or CocoFile(self.predictor.classes)
            self.coco.add(name, found)
            return self._detected(image, found)
        if isinstance(found, Labels):
            best = found.best(self.top)
            lines = [f"{label} {score:.3f}" for label, score in best]
            as_json = [{"class": label, "score": round(score, 5)} for label, score in best]
            return picture_with_lines(image, lines), ", ".join(lines), as_json
        write_label_maps(found, self.output, stem)
        shares = {labels.title: labels.shares() for labels in found}
        words = ", ".join(f"{label} {share:.1f} %" for label, share in list(shares["classes"].items())[:10])
        return draw_label_maps(image, found), words, shares

    def _detected(self, image: np.ndarray, found: Instances) -> tuple[Figure, str, Any]:
        shown, words = best_of(found, self.threshold, self.top)
        labels = labels_of(shown, self.predictor.classes)
        masks = np.asarray(shown.pred_masks) if shown.has("pred_masks") else None
        figure = picture(image, shown.pred_boxes.tensor.numpy(), labels, shown.pred_classes.tolist(), masks=masks)
        return figure, f"{words}: {', '.join(labels[:10]) or '-'}", _as_json(found, self.predictor.classes)

    def _add_frame(self, video: str, file: str, figure: Figure) -> None:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[:, :, 2::-1]
        if video not in self._videos:
            size = (pixels.shape[1] // 2 * 2, pixels.shape[0] // 2 * 2)  # codecs want even sides
            rate = (25.0 if is_address(video) else frames_per_second(video)) / self.every  # as fast as the original
            self._videos[video] = cv2.VideoWriter(
                str(self.output / f"{Path(file).stem}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), rate, size
            )
            self._sizes[video] = size
        self._videos[video].write(_fitted(pixels, self._sizes[video]))


def _fitted(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) within one of ``size``, width and height, as all frames of a video have to have one size:
    legends differ in length. The rest is white; larger ones shrink."""
    width, height = size
    share = min(height / len(pixels), width / pixels.shape[1], 1.0)
    if len(pixels) - height > 1 or pixels.shape[1] - width > 1:  # by more than what makes sides even
        pixels = cv2.resize(np.ascontiguousarray(pixels), None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    frame = np.full((height, width, 3), 255, np.uint8)
    pixels = pixels[:height, :width]
    frame[: len(pixels), : pixels.shape[1]] = pixels
    return frame


def _in_batches(images: Iterable[Shown], count: int) -> Iterator[list[Shown]]:
    remaining = iter(images)
    while batch := list(itertools.islice(remaining, count)):
        yield batch


def run(writer: Writer, files: list[str], batch: int = 1) -> None:
    """Show what is in each image of ``files``, and write it all."""
    writer.output.mkdir(parents=True, exist_ok=True)
    names = dict(zip(files, picture_names(files), strict=True))
    _require_other_files(writer.output, names)
    try:
        for images in _in_batches(read(files, writer.every), batch):
            readable = [shown for shown in images if shown.image is not None]
            writer.unreadable += [shown.name for shown in images if shown.image is None]
            answers = writer.predictor.answer([shown.image for shown in readable if shown.image is not None])
            for shown, answer in zip(readable, answers, strict=True):
                writer.add(shown, answer, names[shown.video or shown.name])
    finally:
        if writer.found:  # what there is, and no empty file in place of an older one
            writer.finish()


def _require_folder(output: Path) -> None:
    """
    Raises:
        UserError: it, or a folder above it, is a file.
    """
    there = next((part for part in (output, *output.parents) if part.exists()), None)
    if there is not None and not there.is_dir():
        raise UserError(f"--output {output} cannot be made: {there} is a file. Give a folder for the pictures.")


def _require_other_files(output: Path, names: dict[str, str]) -> None:
    """
    Raises:
        UserError: a picture or video would take the place of one of the images.
    """
    given = {Path(file).resolve(): file for file in names if not is_address(file)}
    for source, name in names.items():
        written = (output / name).with_suffix(".mp4" if is_video(source) else ".png")
        if file := given.get(written.resolve()):
            raise UserError(f"--output {output} would overwrite {file}: name another folder for the pictures.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="files, folders, patterns, videos, http(s) addresses")
    add_picture_options(parser, "output/detections", 5)
    parser.add_argument("--batch", type=int, default=1, help="images that the model sees at a time")
    parser.add_argument("--every", type=int, default=1, help="of a video: only every so manieth frame")
    options = parser.parse_args(argv)
    if min(options.batch, options.every) < 1:
        parser.error("--batch and --every have to be at least 1")
    setup_logger(name="dyn_d2")
    files = expand(options.images)
    _require_folder(Path(options.output))  # before a model is loaded
    predictor = load_predictor(options.weights, options.config_file, options.opts)
    writer = Writer(predictor, Path(options.output), options.threshold, options.top, options.every)
    run(writer, files, options.batch)
    if writer.found:
        print(f"pictures and detections.json are in {options.output}")
    if writer.unreadable:
        raise UserError(
            f"{len(writer.unreadable)} of {len(files)} images are unreadable: {', '.join(writer.unreadable)}"
        )
    return 0
