"""The command line that all benchmarks share."""

import argparse


def benchmark_parser(doc: str | None, *, quick: str) -> argparse.ArgumentParser:
    """Return a parser with --json and --quick.

    Args:
        doc: docstring of the benchmark; its first line is the description.
        quick: help of --quick, which says what is reduced.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser
