"""From the classes of a registered data set to concepts of a tree."""

from dyn_d2.hierarchy import Hierarchy, HierarchyError


def concepts_of_labels(tree: Hierarchy, metadata) -> tuple[str, ...]:
    """The concept of each label of a data set, in the order of its ``stuff_classes``.

    Which labels of the tree are meant is told by ``label_set`` of the metadata, one of ``tree.datasets``; without it,
    they are those whose names are the data set's classes.

    Raises:
        ValueError: the data set has no label maps, or the tree no labels that fit.
    """
    classes = list(metadata.get("stuff_classes", None) or [])
    if not classes:
        raise ValueError(f"data set {metadata.name} has no stuff_classes: DSSPN needs label maps.")
    named = metadata.get("label_set", None)
    fitting = [named] if named else [d for d in tree.datasets if set(tree.labels(d)) == set(classes)]
    if not fitting:
        raise HierarchyError(
            f"the classes of {metadata.name} ({', '.join(classes[:5])}, ...) are not the labels of any data set of the "
            f"tree {tree.name} ({', '.join(tree.datasets)}): set MODEL.DSSPN.TREE, or label_set of its metadata."
        )
    tree.check_labels(fitting[0], classes)
    labels = tree.labels(fitting[0])
    return tuple(labels[name] for name in classes)
