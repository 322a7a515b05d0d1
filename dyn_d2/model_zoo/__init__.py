"""Trained models that come with dyn_d2, by name.

    from dyn_d2 import model_zoo

    predictor = model_zoo.get(model_zoo.names()[0])
    found = predictor(image)

What is shipped of a model is what it learned; frozen backbones come from their packages (``dyn_d2[pretrained]``). See
MODEL_ZOO.md for what each of them was measured at. ``dyn-d2 demo --weights zoo:NAME`` and everything else that goes
through ``load_predictor`` takes the names too.
"""

from .packed import MOST, card, get, load, names, pack, path_of

__all__ = ["MOST", "card", "get", "load", "names", "pack", "path_of"]
