"""What the scripts of the kernel pages share: the part of a page between two marks comes from committed figures."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
START, END = "<!-- measured -->\n", "<!-- end of measured -->\n"


def renew(page: Path, measured: Callable[[], str], meaning: str | None) -> None:
    """The command line of such a script: write the page with its measured part renewed, or --check that it is."""
    parser = argparse.ArgumentParser(description=meaning, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help=f"fail if {page.name} is not what would be written")
    text = page.read_text()
    before, after = text.index(START) + len(START), text.index(END)
    renewed = text[:before] + measured() + text[after:]
    if parser.parse_args().check:
        sys.exit(text != renewed)
    page.write_text(renewed)
