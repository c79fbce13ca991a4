"""How a network looks where both families share a panel: not the colour of any guidance."""

OF_FAMILY = {
    "sit": {"color": "#882255", "marker": "o"},
    "dit": {"color": "#56b4e9", "marker": "D"},
}
