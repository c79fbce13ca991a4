"""The last line of `make repro`; the same as `python -m companion.report close`."""

import sys

from companion.report.results import close

if __name__ == "__main__":
    if sys.argv[1:] != ["close"]:
        sys.exit("usage: python -m companion.report.summary close")
    close()
