"""``python -m dyn_d2`` is the program ``dyn-d2``; torchrun starts it so: ``torchrun ... -m dyn_d2 train ...``."""

from dyn_d2.cli import main

if __name__ == "__main__":
    main()
