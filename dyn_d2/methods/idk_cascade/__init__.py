"""IDK cascades (Wang et al. 2018): a cheap model first, an expensive one only where that does not know."""
