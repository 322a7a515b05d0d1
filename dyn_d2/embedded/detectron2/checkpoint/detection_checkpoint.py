"""Checkpoints of detection models: our own .pth files, and published .pkl files with foreign names."""

import os
import pickle
import re
from typing import Any

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager, atomic_open

from .c2_model_loading import align_and_update_state_dicts, convert_torchvision_names

# Beside tensors: numbers and arrays of numpy, such as a best metric. None of them runs code of the file.
_NUMPY_TYPES = [
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    *((np._core.multiarray._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
]


class DetectionCheckpointer(Checkpointer):
    """fvcore's ``Checkpointer`` with the following additions.

    - ``.pkl`` files of Detectron2's model zoo and of Caffe2, and ``.pth`` files in torchvision's naming, are fitted to
      the model by name (``c2_model_loading``); any other file is when its path ends in ``?matching_heuristics=True``.
    - Files may come from strangers: nothing in them is executed.
    - Saving is atomic: a file that exists is whole.
    - In a distributed run, a file that only the main process can see reaches all others as well.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables):
        """``save_to_disk``: by default only the main process writes."""
        self._is_parallel = isinstance(model, DistributedDataParallel)
        super().__init__(
            model,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )
        self.path_manager = PathManager

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the model, all checkpointables and ``kwargs`` to ``save_dir/NAME.pth``, and note it as the last one.

        Raises:
            ValueError: ``name`` has a folder in it.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise ValueError(f"A checkpoint is named without a folder, not '{name}'.")
        data = {"model": self.model.state_dict()}
        data.update((key, part.state_dict()) for key, part in self.checkpointables.items())
        data.update(kwargs)
        file = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        os.makedirs(self.save_dir, exist_ok=True)
        with atomic_open(file) as stream:
            torch.save(data, stream)
        self.tag_last_checkpoint(os.path.basename(file))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the file from which a resumed run starts."""
        with atomic_open(os.path.join(self.save_dir, "last_checkpoint"), "w") as stream:
            stream.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint into the model and the checkpointables.

        In a distributed run all processes have to call it.

        Args:
            path: file or address; empty does nothing.
            checkpointables: names of those to load; all that the file has by default.

        Returns:
            what the file holds besides, e.g. "iteration".

        Raises:
            FileNotFoundError: there is no such file.
            pickle.UnpicklingError: it cannot be read, or asks for more than data.
            ValueError: its content is no checkpoint.
        """
        if not path:
            self.logger.info("No checkpoint found. Initializing model from scratch")
            return {}
        self.logger.info(f"[DetectionCheckpointer] Loading from {path} ...")
        # Only here, because dyn_d2 is imported together with this package.
        from dyn_d2.checkpoint.validate import InvalidCheckpoint, require_weights

        checkpoint = self._read(str(path))
        try:
            require_weights(checkpoint.get("model"), path)
        except InvalidCheckpoint as error:
            raise ValueError(str(error)) from error
        incompatible = self._load_model(checkpoint)
        if incompatible is not None:  # subclasses may return nothing
            self._log_incompatible_keys(incompatible)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.logger.info(f"Loading {key} from {path} ...")
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    def _read(self, path: str) -> dict[str, Any]:
        """The content of the file, from the main process where this one cannot see it."""
        path, query = (path, "") if os.path.isfile(path) else path.partition("?")[::2]
        if query not in ("", "matching_heuristics=True", "matching_heuristics=False"):
            raise ValueError(f"A checkpoint's path may end in ?matching_heuristics=True, but not in ?{query}")
        file = self.path_manager.get_local_path(path)
        present = [os.path.isfile(file)]
        if self._is_parallel:
            present = comm.all_gather(present[0])
        if not present[0]:
            from dyn_d2.checkpoint.files import no_file

            raise FileNotFoundError(no_file(file))
        # Processes that see the file read it themselves; the others get the main one's.
        checkpoint = self._load_file(file) if present[comm.get_rank() if self._is_parallel else 0] else None
        if not all(present):
            self.logger.warning(f"Not all processes can see {file}: the main one sends its content.")
            sent = comm.all_gather(checkpoint if comm.is_main_process() else None)[0]
            checkpoint = sent if checkpoint is None else checkpoint
        if query.endswith("True"):
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        loaded = self._torch_load(filename)
        if not isinstance(loaded, dict):
            raise ValueError(f"'{filename}' is no checkpoint: it holds a {type(loaded).__name__}, not a dictionary.")
        if "model" in loaded:
            return loaded
        if "layer1.0.conv1.weight" in loaded and "layer1.0.conv1.weight" not in self.model.state_dict():
            loaded = convert_torchvision_names(loaded)
            return {"model": loaded, "__author__": "torchvision", "matching_heuristics": True}
        return {"model": loaded}

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        # Only here, so that this package works without dyn_d2 for everything else.
        from dyn_d2.utils.restricted_pickle import load

        try:
            with open(filename, "rb") as stream:
                data = load(stream)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(f"Checkpoint '{filename}': {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"'{filename}' is no checkpoint: it holds a {type(data).__name__}, not a dictionary.")
        if "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        # Caffe2: detectors have their weights in "blobs", ImageNet models at the top.
        weights = {key: value for key, value in data.get("blobs", data).items() if not key.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        # Only here, because dyn_d2 is imported together with this package.
        from dyn_d2.checkpoint.validate import InvalidCheckpoint, require_sound_file

        try:
            require_sound_file(f)
        except InvalidCheckpoint as error:
            raise pickle.UnpicklingError(f"{error} It is damaged or no checkpoint.") from error
        try:
            with torch.serialization.safe_globals(_NUMPY_TYPES):
                return torch.load(f, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AttributeError) as error:
            if foreign := re.search(r"GLOBAL (\S+)", str(error)):
                # Not torch's own message, which advises to switch the protection off.
                raise pickle.UnpicklingError(
                    f"Checkpoint '{f}' is refused: it asks for {foreign[1]}, which is neither a tensor nor a plain "
                    "value and may run code. Where its author can be trusted, save its state_dict anew."
                ) from None
            raise pickle.UnpicklingError(f"'{f}' is damaged or no checkpoint: {error!r}") from error

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), checkpoint["model"], c2_conversion=checkpoint.get("__author__") == "Caffe2"
            )
        incompatible = super()._load_model(checkpoint)
        # These come from the config; checkpoints need not have them.
        from_config = {"pixel_mean", "pixel_std"} & dict(self.model.named_buffers(recurse=False)).keys()
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in from_config]
        # Older versions saved the anchors, which are computed anyway.
        incompatible.unexpected_keys[:] = [
            key for key in incompatible.unexpected_keys if "anchor_generator.cell_anchors" not in key
        ]
        return incompatible
