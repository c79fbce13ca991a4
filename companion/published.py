"""The paper's numbers, from data/paper_results.csv (arXiv 2510.12497)."""

import pandas as pd

from nag.support.paths import DATA

MODELS = {"sit": "SiT-XL/2", "dit": "DiT-XL/2"}  # the paper's network of each family
ARMS = {("none", 0): "none", ("none", 1): "nag", ("cfg", 0): "cfg", ("cfg", 1): "cfg+nag"}


def fid_ratios() -> dict[str, dict[str, float]]:
    """FID of each arm over the unguided one on ImageNet 256, {model: {arm: ratio}}."""
    table = pd.read_csv(DATA / "paper_results.csv")
    table = table[(table.table == "imagenet_converged") & (table.metric == "fid")]
    ratios = {}
    for model, rows in table.groupby("model"):
        fid = {ARMS[row.guidance, row.nag]: row.value for row in rows.itertuples()}
        ratios[model] = {arm: value / fid["none"] for arm, value in fid.items()}
    return ratios
