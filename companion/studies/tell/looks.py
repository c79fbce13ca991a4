"""How a network looks where both families share a panel: not the colour of any guidance."""

from typing import Any

OF_FAMILY: dict[str, dict[str, Any]] = {
    "sit": {"color": "#882255", "marker": "o"},
    "dit": {"color": "#56b4e9", "marker": "D"},
}
