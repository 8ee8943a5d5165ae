"""python -m sightline.app.bench embed|folder [options]"""

from __future__ import annotations

import argparse

from sightline.app.bench import embed, folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sightline.app.bench", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    for name, module in (("embed", embed), ("folder", folder)):
        verb = verbs.add_parser(name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_options(verb)
        verb.set_defaults(run=module.run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
