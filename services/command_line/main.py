"""`tiercel`: what an operator does by hand."""

import argparse
import sys

from command_line import build, clients, jobs, packages, tokens, tune


def main(arguments: list[str] | None = None) -> int | str | None:
    parser = argparse.ArgumentParser(prog="tiercel", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    clients.add_to(commands)
    tokens.add_to(commands)
    jobs.add_to(commands)
    build.add_to(commands)
    packages.add_to(commands)
    tune.add_to(commands)
    options = parser.parse_args(arguments)
    return options.run(options)  # type: ignore[no-any-return]  # each command sets its own


if __name__ == "__main__":
    sys.exit(main())
