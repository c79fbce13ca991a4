"""The paper's main table with our column (notebook 16): ImageNet's numbers if they are there, else
the laptop's, as ratios."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nag.support.files import read_json
from nag.support.uncertainty import Interval, independent_ratio, show, verdict

ARMS = {"none": "none", "nag": "nag", "cfg": "cfg", "cfg-nag": "cfg+nag"}  # in files: in results
METRICS = {"fid": "fd_inf", "precision": "precision", "recall": "recall"}  # at scale: on the laptop
PAIRS = {"NAG over none": ("nag", "none"), "CFG+NAG over CFG": ("cfg-nag", "cfg")}
CLAIMS = {"C7": "NAG over none", "C6": "CFG+NAG over CFG"}


class Results(NamedTuple):
    """Our numbers beside the published ones."""

    at_scale: bool  # whether they are ImageNet's
    presets: dict[str, dict]  # by family: model, chosen weights, published numbers
    ours: dict[str, dict]  # {family: {arm: {"fid", "precision", "recall": interval}}}


def load(folder: Path, families: Sequence[str], presets: Path) -> Results:
    """The numbers of the families in a results folder: adm-FAMILY.json of all families, or else
    the laptop's summary.json."""
    preset = {family: read_json(presets)[family] for family in families}
    files = {family: folder / "metrics" / f"adm-{family}.json" for family in families}
    at_scale = all(file.is_file() for file in files.values())

    def numbers(family: str) -> dict:
        if at_scale:
            found = read_json(files[family])
            return {arm: {metric: found[arm][metric] for metric in METRICS} for arm in ARMS}
        found = read_json(folder / "summary.json")[family]["ode"]
        return {
            arm: {metric: found[name][mine] for metric, mine in METRICS.items()}
            for arm, name in ARMS.items()
        }

    return Results(at_scale, preset, {family: numbers(family) for family in families})


def source(results: Results) -> str:
    """Whose numbers these are, in words."""
    if results.at_scale:
        return "the ImageNet run"
    return "no ImageNet results here: the laptop's numbers, as ratios to the unguided arm"


def table(results: Results) -> pd.DataFrame:
    """A row per model and arm: ratios of FIDs, the paper's and ours, and at ImageNet's scale the
    weights and every number beside the published one."""
    rows = []
    for family, preset in results.presets.items():
        ours, expected = results.ours[family], preset["expected"]
        for arm, name in ARMS.items():
            chosen, row = preset["chosen"][arm], {"model": preset["model"], "arm": name}
            if results.at_scale:
                row |= {"w_nag": chosen["w_nag"], "CFG scale": chosen["cfg"]}
            row |= {
                "FID ratio, paper": expected[arm]["fid"] / expected["none"]["fid"],
                "ratio, ours": ours[arm]["fid"]["value"] / ours["none"]["fid"]["value"],
            }
            for metric in METRICS if results.at_scale else ():
                published, here = expected[arm][metric], ours[arm][metric]["value"]
                row |= {
                    f"{metric}, paper": published,
                    f"{metric}, ours": here,
                    f"{metric}, difference": here - published,
                }
            rows.append(row)
    return pd.DataFrame(rows)


def distances(results: Results) -> pd.Series:
    """The Fréchet distance of every model and arm with its 95 % interval."""
    return pd.Series(
        {
            (results.presets[family]["model"], name): show(results.ours[family][arm]["fid"])
            for family in results.ours
            for arm, name in ARMS.items()
        },
        name="Fréchet distance",
    )


def gains(results: Results) -> dict[str, dict[str, Interval]]:
    """{family: {pair: ratio of distances}}; arms are taken as independent, though they share
    seeds."""
    return {
        family: {
            pair: independent_ratio(ours[a]["fid"], ours[b]["fid"])
            for pair, (a, b) in PAIRS.items()
        }
        for family, ours in results.ours.items()
    }


def published_gains(results: Results) -> dict[str, dict[str, float]]:
    """The same ratios of the paper's FIDs."""
    return {
        family: {
            pair: preset["expected"][a]["fid"] / preset["expected"][b]["fid"]
            for pair, (a, b) in PAIRS.items()
        }
        for family, preset in results.presets.items()
    }


def compared(results: Results) -> pd.DataFrame:
    """Our ratios with their intervals beside the paper's."""
    gain, paper = gains(results), published_gains(results)
    return pd.DataFrame(
        {
            (results.presets[family]["model"], pair): {
                "ours": show(ratio, ".3f"),
                "paper": f"{paper[family][pair]:.3f}",
            }
            for family, ratios in gain.items()
            for pair, ratio in ratios.items()
        }
    ).T


def answers(results: Results) -> dict[str, dict]:
    """Answers to claims C7 and C6 from ImageNet's networks; none from the laptop's."""
    gain, paper, found = gains(results), published_gains(results), {}
    for family, preset in results.presets.items() if results.at_scale else ():
        for claim, pair in CLAIMS.items():
            ratio = gain[family][pair]
            text = (
                f"{preset['model']} on ImageNet, FID of {pair}: {show(ratio)} "
                f"(the paper {paper[family][pair]:.2f})."
            )
            found[f"{claim}, {family}"] = {
                "sentence": text,
                "brief": text,
                "key": f"gain/{family}/{pair}",
                "scale": "paper",
                "verdict": verdict(ratio, -1, 1.0),
                "figure": f"figures/{family}_shift.png",
            }
    return found


def metrics(results: Results) -> Mapping:
    """The numbers behind the answers."""
    return {
        "scale": "paper" if results.at_scale else "laptop",
        "gain": gains(results),
        "paper": published_gains(results),
    }
