"""The claims ledger: each claim of the paper, our evidence by file and key, and a verdict computed from its interval."""

from pathlib import Path

from nag.files import read_json
from nag.paths import DATA

VERDICTS = ("reproduced", "partly", "contradicted", "needs GPUs")
Row = tuple[dict | None, dict, str, str]  # ours, evidence, verdict, note


def _sign(x: dict, claimed: int, bound: float = 0.0) -> str:
    """Verdict on "x is above (claimed = 1) or below (-1) the bound" from a 95 % interval."""
    low, high = sorted((claimed * (x["low"] - bound), claimed * (x["high"] - bound)))
    return "reproduced" if low > 0 else "contradicted" if high < 0 else "partly"


def _worst(verdicts: list[str]) -> str:
    """Several families: all alike is that verdict, anything mixed is partly."""
    return verdicts[0] if len(set(verdicts)) == 1 else "partly"


def _evidence(file: str, key: str) -> dict:
    return {"file": file, "key": key}


def _number(x: dict) -> dict:
    return {k: x[k] for k in ("value", "low", "high")}


def ratio(a: dict, b: dict) -> dict:
    """a / b of two values with 95 % intervals taken as independent, which is wide for arms that share seeds."""
    value = a["value"] / b["value"]
    half = value * sum(((x["high"] - x["low"]) / 2 / x["value"]) ** 2 for x in (a, b)) ** 0.5
    return {"value": value, "low": value - half, "high": value + half}


def _shifted(folder: Path, summary: dict) -> Row:
    ours = {f: _number(arms["none"]["shift_late"]) for f, arms in summary.items()}
    return ours, _evidence("summary.json", "sit/none/shift_late"), _worst([_sign(x, 1) for x in ours.values()]), (
        "mean shift of unguided states over 0 < t <= 0.2, control subtracted")


def _grows(folder: Path, summary: dict) -> Row:
    ours = {f: read_json(folder / "metrics" / f"shift-{f}.json")["none"]["growth"] for f in summary}
    return ours, _evidence("metrics/shift-sit.json", "none/growth"), _worst([_sign(x, 1) for x in ours.values()]), (
        "late shift (0 < t <= 0.2) minus the shift over 0.4 <= t <= 0.9")


def _statement_1(folder: Path, summary: dict) -> Row:
    toy = read_json(folder / "metrics" / "toy.json")["statement_1"]
    verdict = "reproduced" if toy["low"] <= 1 <= toy["high"] else "contradicted"
    return _number(toy), _evidence("metrics/toy.json", "statement_1"), verdict, (
        "measured shift over sqrt(t^2 + s^2) - t on a mixture with exact posterior; 1 is Statement 1")


def _reduces(folder: Path, summary: dict) -> Row:
    ours = {f: read_json(folder / "metrics" / f"shift-{f}.json")["nag"]["late_ratio"] for f in summary}
    return ours, _evidence("metrics/shift-sit.json", "nag/late_ratio"), _worst([_sign(x, -1, 1.0) for x in ours.values()]), (
        "|late shift| with NAG over that without")


def _near_cfg(folder: Path, summary: dict) -> Row:
    ours, verdicts = {}, []
    for f, arms in summary.items():
        ours[f] = ratio(arms["nag"]["fd"], arms["cfg"]["fd"])
        better = ratio(arms["nag"]["fd"], arms["none"]["fd"])["high"] < 1
        verdicts.append("reproduced" if ours[f]["high"] <= 1.25 else "partly" if better else "contradicted")
    return ours, _evidence("summary.json", "sit/nag/fd"), _worst(verdicts), (
        "distance of NAG over that of CFG (paper: 1.14 and 1.10); reproduced if at most 1.25, partly if it only improves")


def _adds_to_cfg(folder: Path, summary: dict) -> Row:
    ours = {f: ratio(arms["cfg+nag"]["fd"], arms["cfg"]["fd"]) for f, arms in summary.items()}
    verdict = _worst([_sign(x, -1, 1.0) for x in ours.values()])
    return ours, _evidence("summary.json", "sit/cfg+nag/fd"), "partly" if verdict == "reproduced" else verdict, (
        "distance of CFG + NAG over that of CFG; the half about domain guidance (DoG) is not measured here")


def _dit_gains_more(folder: Path, summary: dict) -> Row:
    if "dit" not in summary:
        return None, _evidence("", ""), "needs GPUs", "no DiT is trained here yet"
    ours = {f: ratio(summary[f]["nag"]["fd"], summary[f]["none"]["fd"]) for f in ("dit", "sit")}
    verdict = _sign({"low": ours["sit"]["low"] - ours["dit"]["high"], "high": ours["sit"]["high"] - ours["dit"]["low"]}, 1)
    return ours, _evidence("summary.json", "dit/nag/fd"), verdict, "distance of NAG over unguided, from scratch, in each family"


def _out_of_reach(why: str):
    return lambda folder, summary: (None, _evidence("", ""), "needs GPUs", why)


JUDGES = {
    "C1": _shifted, "C2": _grows, "C3": _statement_1, "C4": _reduces, "C5": _near_cfg, "C6": _adds_to_cfg,
    "C7": _out_of_reach("the claim is about released ImageNet weights"),
    "C8": _dit_gains_more,
    "C9": _out_of_reach("the claim is about fine-tuning DiT-XL/2 on seven data sets"),
}


def ledger(folder: Path, summary: dict) -> list[dict]:
    """Rows {id, statement, paper, ours, evidence: {file, key}, verdict, note}, one per claim of data/paper_claims.json.

    Raises KeyError for a claim without a judge, FileNotFoundError for missing evidence.
    """
    rows = []
    for claim in read_json(DATA / "paper_claims.json"):
        ours, evidence, verdict, note = JUDGES[claim["id"]](folder, summary)
        rows.append({**claim, "ours": ours, "evidence": evidence, "verdict": verdict, "note": note})
    return rows
