"""What is valid: the one list of what every reader of a data set takes, refuses and reads in its own way.

The check (``dyn_d2.data.check``), the loaders and the evaluators, of both Detectron2s, ask the modules of this package,
so that what the check passes trains and is evaluated to the right numbers:

- ``consumers``: who reads what, and which kind of problem spoils whose work.
- ``values``: numbers, sizes, ids and flags.
- ``annotation``, ``rle``: one object's box, mask, area and flags.
- ``coco``, ``voc``, ``records``: annotations in COCO's or LVIS' json, in VOC's xml, and registered in Python.
- ``ground_truth``: a json for pycocotools and lvis, whose C code must never see what is damaged.
- ``label_maps``, ``images``: the files.

The embedded Detectron2 imports them when it reads something, since they are imported together with ``dyn_d2``.
"""
