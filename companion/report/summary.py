"""Names that notebooks and `make repro` still look for here; see results and support."""

import sys

from companion.report.results import NAMES, close
from nag.models import PATH_OF, DiT
from nag.support.uncertainty import independent_ratio

__all__ = ["NAMES", "independent_ratio", "named"]


def named(net: DiT) -> str:
    """Kind and size of a network of any training, such as "SiT of 0.5 M parameters"."""
    kind = {path: family for family, path in PATH_OF.items()}[net.config.path]
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    return f"{NAMES[kind].removesuffix('-mini')} of {millions:.1f} M parameters"


if __name__ == "__main__":
    if sys.argv[1:] != ["close"]:
        sys.exit("usage: python -m companion.report.summary close")
    close()
