"""Names that studies' notebooks and `make repro` still look for here; see results."""

import sys

from companion.report.results import NAMES, close

__all__ = ["NAMES"]

if __name__ == "__main__":
    if sys.argv[1:] != ["close"]:
        sys.exit("usage: python -m companion.report.summary close")
    close()
