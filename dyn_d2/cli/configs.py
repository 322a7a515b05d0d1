"""The configs that come with dyn_d2, as --config-file takes them.

dyn-d2 configs
dyn-d2 configs digit --paths
"""

import argparse

from dyn_d2.config.names import config_names, configs_folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only names that contain it")
    parser.add_argument("--paths", action="store_true", help="say where the files lie, for a copy")
    args = parser.parse_args(argv)
    names = [name for name in config_names() if args.word.lower() in name.lower()]
    if not names:
        raise ValueError(f"no config has {args.word!r} in its name.")
    print("\n".join(str(configs_folder() / name) if args.paths else name for name in names))
    return 0
