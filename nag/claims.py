"""The claims ledger: each claim of the paper, our evidence by file and key, and a verdict computed from its interval.

Evidence is text: file names and keys, each list joined by "; ", every key being in every file; that of studies stands apart.
"""

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


def _evidence(files: list[str], *keys: str) -> dict:
    return {"file": "; ".join(files), "key": "; ".join(keys)}


def _of_each(summary: dict, kind: str) -> list[str]:
    """The files metrics/KIND-FAMILY.json of all families."""
    return [f"metrics/{kind}-{family}.json" for family in summary]


def _number(x: dict) -> dict:
    return {k: x[k] for k in ("value", "low", "high")}


def _shifts(folder: Path, summary: dict, key: str, arm: str = "none") -> dict:
    """One number of the shift files, of every family and both samplers, {"sit, ODE": {value, low, high}, ...}."""
    ours = {}
    for f in summary:
        shift = read_json(folder / "metrics" / f"shift-{f}.json")
        ours |= {f"{f}, ODE": _number(shift[arm][key]), f"{f}, SDE": _number(shift[f"sde-{arm}"][key])}
    return ours


def _listed(ours: dict) -> str:
    return "; ".join(f"{name} {x['value']:.3g} [{x['low']:.3g}, {x['high']:.3g}]" for name, x in ours.items())


def _each(ours: dict, claimed: int, bound: float = 0.0) -> tuple[str, str]:
    """The verdict over all entries, and a text that gives each its own."""
    verdicts = {name: _sign(x, claimed, bound) for name, x in ours.items()}
    text = "; ".join(f"{name} {ours[name]['value']:.3g} [{ours[name]['low']:.3g}, {ours[name]['high']:.3g}] {verdict}"
                     for name, verdict in verdicts.items())
    return _worst(list(verdicts.values())), text


def _shifted(folder: Path, summary: dict) -> Row:
    ours = _shifts(folder, summary, "shift_late")
    verdict, text = _each(ours, 1)
    return ours, _evidence(_of_each(summary, "shift"), "none/shift_late", "sde-none/shift_late"), verdict, (
        f"unguided shift over 0 < t <= 0.2, control subtracted: {text}")


def _grows(folder: Path, summary: dict) -> Row:
    ours = _shifts(folder, summary, "growth")
    verdict, text = _each(ours, 1)
    return ours, _evidence(_of_each(summary, "shift"), "none/growth", "sde-none/growth"), verdict, (
        f"late shift minus that over 0.4 <= t <= 0.9: {text}")


def _statement_1(folder: Path, summary: dict) -> Row:
    toy = read_json(folder / "metrics" / "toy.json")["statement_1"]
    if 0.9 <= toy["low"] and toy["high"] <= 1.1:
        verdict = "reproduced"
    else:
        verdict = "partly" if toy["low"] <= 1 <= toy["high"] else "contradicted"
    return _number(toy), _evidence(["metrics/toy.json"], "statement_1"), verdict, (
        f"measured shift over sqrt(t^2 + s^2) - t, mixture with exact posterior: {toy['value']:.3f}; reproduced if within 10 %")


def _reduces(folder: Path, summary: dict) -> Row:
    ours = _shifts(folder, summary, "late_ratio", "nag")
    verdict, text = _each(ours, -1, 1.0)
    return ours, _evidence(_of_each(summary, "shift"), "nag/late_ratio", "sde-nag/late_ratio"), verdict, (
        f"|late shift| with NAG over that without: {text}; where C1's interval holds zero there is no shift to make smaller, and "
        "the ratio says nothing")


def _ratios(folder: Path, summary: dict, key: str) -> dict:
    return {f: _number(read_json(folder / "metrics" / f"ratios-{f}.json")[key]) for f in summary}


def _near_cfg(folder: Path, summary: dict) -> Row:
    ours, gain = _ratios(folder, summary, "nag over cfg"), _ratios(folder, summary, "nag over none")
    verdicts = ["reproduced" if ours[f]["high"] <= 1.25 else "partly" if gain[f]["high"] < 1 else "contradicted" for f in ours]
    return ours, _evidence(_of_each(summary, "ratios"), "nag over cfg"), _worst(verdicts), (
        f"distance of NAG over that of CFG (paper: 1.14 and 1.10): {_listed(ours)}; reproduced if surely at most 1.25, partly if "
        "NAG only improves")


def _adds_to_cfg(folder: Path, summary: dict) -> Row:
    ours = _ratios(folder, summary, "cfg+nag over cfg")
    verdict, text = _each(ours, -1, 1.0)
    return ours, _evidence(_of_each(summary, "ratios"), "cfg+nag over cfg"), verdict, (
        f"distance of CFG + NAG over that of CFG: {text}")


def _dit_gains_more(folder: Path, summary: dict) -> Row:
    if "dit" not in summary:
        return None, _evidence([]), "partly", "no DiT was trained in this run"
    ours = _ratios(folder, summary, "nag over none")
    difference = {"low": ours["sit"]["low"] - ours["dit"]["high"], "high": ours["sit"]["high"] - ours["dit"]["low"]}
    return ours, _evidence(_of_each(summary, "ratios"), "nag over none"), _sign(difference, 1), (
        f"distance of NAG over unguided, from scratch: {_listed(ours)}; each family with its own deterministic sampler and its "
        "own best w of a sweep")


def _out_of_reach(why: str):
    return lambda folder, summary: (None, _evidence([]), "needs GPUs", why)


JUDGES = {
    "C1": _shifted, "C2": _grows, "C3": _statement_1, "C4": _reduces, "C5": _near_cfg, "C6": _adds_to_cfg,
    "C7": _out_of_reach("the claim is about released ImageNet weights"),
    "C8": _dit_gains_more,
    "C9": _out_of_reach("the claim is about fine-tuning DiT-XL/2 on seven data sets"),
}


WITHOUT_STUDY = {"C6": "the half about domain guidance (DoG) is not measured here"}


def _with_studies(claim: str, row: Row, answers: list[dict]) -> Row:
    """A claim's row with what the studies found about it (nag.questions); without a needed study it is partly at best.

    So is a claim about released models or the paper's data sets, of which a study in small shows a part.
    """
    ours, evidence, verdict, note = row
    if not answers:
        missing = WITHOUT_STUDY.get(claim)
        if missing is None:
            return row
        return ours, evidence, "partly" if verdict == "reproduced" else verdict, f"{note}; {missing}"
    small = verdict == "needs GPUs"
    joined = _worst([answer["verdict"] for answer in answers] + [verdict] * (not small))
    here = f" That is in small; {note}, which needs GPUs (imagenet/README.md)." if small else f" {note}."
    studies = [{name: answer[name] for name in ("file", "key")} for answer in answers]
    joined = "partly" if small and joined == "reproduced" else joined
    return ours, evidence | {"studies": studies}, joined, " ".join(answer["sentence"] for answer in answers) + here


def ledger(folder: Path, summary: dict, answers: dict[str, list[dict]] | None = None) -> list[dict]:
    """Rows {id, statement, paper, ours, evidence: {file, key}, verdict, note}, one per claim of data/paper_claims.json.

    `answers` are those of nag.questions. Files of evidence are relative to the results folder, those of studies to the
    repository. Raises KeyError for a claim without a judge, FileNotFoundError for missing evidence.
    """
    rows = []
    for claim in read_json(DATA / "paper_claims.json"):
        row = JUDGES[claim["id"]](folder, summary)
        ours, evidence, verdict, note = _with_studies(claim["id"], row, (answers or {}).get(claim["id"], []))
        rows.append({**claim, "ours": ours, "evidence": evidence, "verdict": verdict, "note": note})
    return rows
