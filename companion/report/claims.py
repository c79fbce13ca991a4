"""The claims ledger: each claim of the paper, our evidence by file and key, and a verdict computed
from its interval.
"""

from pathlib import Path

from companion.report.evidence import Place, places
from nag.support.files import read_json
from nag.support.paths import DATA

VERDICTS = ("reproduced", "partly", "contradicted", "needs GPUs")
OPEN = "not told apart"  # of one network and sampler; a claim that rests on such is partly
MEANING = (
    "*reproduced*: the whole 95 % interval lies on the claimed side, for every network and sampler; *contradicted*: on "
    f"the other side; *partly*: networks or samplers differ, or an interval leaves it open (*{OPEN}*). For C3 and C5 "
    "the side is a tolerance of ours, which the row states; *needs GPUs*: not tested at this scale"
)
Row = tuple[dict | None, list[Place], str, str]  # ours, evidence, verdict, note


def judged(x: dict, claimed: int, bound: float = 0.0) -> str:
    """The verdict on "x is above (claimed = 1) or below (-1) the bound" from a 95 % interval."""
    low, high = sorted((claimed * (x["low"] - bound), claimed * (x["high"] - bound)))
    return "reproduced" if low > 0 else "contradicted" if high < 0 else OPEN


def _worst(verdicts: list[str]) -> str:
    """Several families: all alike is that verdict, anything mixed or open is partly."""
    return verdicts[0] if len(set(verdicts)) == 1 and verdicts[0] != OPEN else "partly"


def _of_each(folder: Path, summary: dict, kind: str, *keys: str) -> list[Place]:
    """The keys in the files metrics/KIND-FAMILY.json of all families."""
    return places([f"{folder.name}/metrics/{kind}-{family}.json" for family in summary], *keys)


def _number(x: dict) -> dict:
    return {k: x[k] for k in ("value", "low", "high")}


def _shifts(folder: Path, summary: dict, key: str, arm: str = "none") -> dict:
    """One number of the shift files, of every family and both samplers, {"sit, ODE": {value, low,
    high}, ...}.
    """
    ours = {}
    for f in summary:
        shift = read_json(folder / "metrics" / f"shift-{f}.json")
        ours |= {
            f"{f}, ODE": _number(shift[arm][key]),
            f"{f}, SDE": _number(shift[f"sde-{arm}"][key]),
        }
    return ours


def _shown(x: dict) -> str:
    return f"{x['value']:.3g} [{x['low']:.3g}, {x['high']:.3g}]"


def _listed(ours: dict) -> str:
    return "; ".join(f"{name} {_shown(x)}" for name, x in ours.items())


def _each(ours: dict, claimed: int, bound: float = 0.0) -> tuple[str, str]:
    """The verdict over all entries, and a text that gives each its own."""
    verdicts = {name: judged(x, claimed, bound) for name, x in ours.items()}
    return _worst(list(verdicts.values())), "; ".join(
        f"{name} {_shown(x)} {verdicts[name]}" for name, x in ours.items()
    )


def _shifted(folder: Path, summary: dict) -> Row:
    ours = _shifts(folder, summary, "shift_late")
    verdict, text = _each(ours, 1)
    return (
        ours,
        _of_each(folder, summary, "shift", "none/shift_late", "sde-none/shift_late"),
        verdict,
        (f"unguided shift over 0 < t <= 0.2, control subtracted: {text}"),
    )


def _grows(folder: Path, summary: dict) -> Row:
    ours = _shifts(folder, summary, "growth")
    verdict, text = _each(ours, 1)
    return (
        ours,
        _of_each(folder, summary, "shift", "none/growth", "sde-none/growth"),
        verdict,
        (f"late shift minus that over 0.4 <= t <= 0.9: {text}"),
    )


def _statement_1(folder: Path, summary: dict) -> Row:
    toy = read_json(folder / "metrics" / "toy.json")["statement_1"]
    verdict = (
        "reproduced"
        if 0.9 <= toy["low"] and toy["high"] <= 1.1
        else "contradicted"
        if toy["high"] < 0.9 or toy["low"] > 1.1
        else "partly"
    )
    return (
        _number(toy),
        places([f"{folder.name}/metrics/toy.json"], "statement_1"),
        verdict,
        (
            f"measured shift over sqrt(t^2 + s^2) - t on an exact toy with alpha = 1, t >= 0.1: {_shown(toy)}; "
            "reproduced if within 10 %; on SiT's path it is an approximation (notebook 00), DiT's was not tested"
        ),
    )


def _reduces(folder: Path, summary: dict) -> Row:
    ours, before = (
        _shifts(folder, summary, "late_ratio", "nag"),
        _shifts(folder, summary, "shift_late"),
    )
    shifted = {name: judged(before[name], 1) == "reproduced" for name in ours}
    verdicts = {name: judged(ours[name], -1, 1.0) if shifted[name] else OPEN for name in ours}
    text = "; ".join(
        f"{name} {_shown(ours[name])} {verdicts[name]}"
        if shifted[name]
        else f"{name}: no late shift to reduce"
        for name in ours
    )
    middle, guided = _shifts(folder, summary, "middle"), _shifts(folder, summary, "middle", "nag")
    text += "; over 0.4 <= t <= 0.9 the shift goes from " + "; ".join(
        f"{name} {_shown(middle[name])} to {_shown(guided[name])}" for name in ours
    )
    return (
        ours,
        _of_each(folder, summary, "shift", "nag/late_ratio", "sde-nag/late_ratio", "nag/middle"),
        _worst(list(verdicts.values())),
        (
            "|late shift| (0 < t <= 0.2) with NAG over that without, forward states of real images being "
            f"the control (by another one: F7): {text}"
        ),
    )


def _ratios(folder: Path, summary: dict, key: str) -> dict:
    return {f: _number(read_json(folder / "metrics" / f"ratios-{f}.json")[key]) for f in summary}


def _near_cfg(folder: Path, summary: dict) -> Row:
    near = 1.25
    ours, gain = _ratios(folder, summary, "nag over cfg"), _ratios(folder, summary, "nag over none")
    of = {f: {arm: summary[f][arm]["fd"]["value"] for arm in ("none", "nag", "cfg")} for f in ours}
    helps = {f: gain[f]["high"] < 1 for f in ours}
    telling = {
        f: of[f]["none"] / of[f]["cfg"] > near for f in ours
    }  # else no guidance would be near CFG, too
    verdicts = [
        "reproduced"
        if helps[f] and telling[f] and ours[f]["high"] <= near
        else "contradicted"
        if gain[f]["low"] > 1
        else "partly"
        for f in ours
    ]
    shares = ", ".join(
        f"{f} {(x['none'] - x['nag']) / (x['none'] - x['cfg']):.2f}" for f, x in of.items()
    )
    unguided = ", ".join(f"{f} {x['none'] / x['cfg']:.2f}" for f, x in of.items())
    return (
        ours,
        _of_each(folder, summary, "ratios", "nag over cfg", "nag over none"),
        _worst(verdicts),
        (
            f"distance of NAG over that of CFG (paper: sit 1.10, dit 1.14): {_listed(ours)}; no guidance over CFG: {unguided} "
            f"(paper: sit 4.18, dit 4.24); share of CFG's gain that NAG reaches, by point value: {shares} (paper: 0.97 and 0.96). "
            f"Reproduced if NAG surely improves and is surely at most {near} of CFG, where no guidance is not; contradicted if it "
            "surely makes things worse"
        ),
    )


def _adds_to_cfg(folder: Path, summary: dict) -> Row:
    ours = _ratios(folder, summary, "cfg+nag over cfg")
    verdict, text = _each(ours, -1, 1.0)
    return (
        ours,
        _of_each(folder, summary, "ratios", "cfg+nag over cfg"),
        verdict,
        (f"distance of CFG + NAG over that of CFG: {text}"),
    )


def _dit_gains_more(folder: Path, summary: dict) -> Row:
    if "dit" not in summary:
        return None, [], "partly", "no DiT was trained in this run"
    ours = _ratios(folder, summary, "nag over none")
    difference = {
        "low": ours["sit"]["low"] - ours["dit"]["high"],
        "high": ours["sit"]["high"] - ours["dit"]["low"],
    }
    verdict, first = judged(difference, 1), min(ours, key=lambda f: ours[f]["value"])
    return (
        ours,
        _of_each(folder, summary, "ratios", "nag over none"),
        _worst([verdict]),
        (
            f"distance of NAG over unguided, from scratch: {_listed(ours)}: {verdict}, by point value {first} gains more; each "
            "family with its own deterministic sampler and its own best w of a sweep"
        ),
    )


def _out_of_reach(why: str):
    return lambda folder, summary: (None, [], "needs GPUs", why)


JUDGES = {
    "C1": _shifted,
    "C2": _grows,
    "C3": _statement_1,
    "C4": _reduces,
    "C5": _near_cfg,
    "C6": _adds_to_cfg,
    "C7": _out_of_reach("the claim is about released ImageNet weights"),
    "C8": _dit_gains_more,
    "C9": _out_of_reach("the claim is about fine-tuning DiT-XL/2 on seven data sets"),
}


WITHOUT_STUDY = {"C6": "the half about domain guidance (DoG) is not measured here"}


def _with_studies(claim: str, row: Row, answers: list[dict], words: str = "sentence") -> Row:
    """A claim's row with what the studies found about it (companion.report.questions); without a
    needed study it is partly at best.

    So is a claim about released models or the paper's data sets, of which a study in small shows a
    part, unless the pipelines of imagenet/ have an answer at the paper's scale, which then decides
    alone. `words` is which of an answer's texts stands in the note, "sentence" or "brief"."""
    ours, evidence, verdict, note = row
    if not answers:
        missing = WITHOUT_STUDY.get(claim)
        if missing is None:
            return row
        return (
            ours,
            evidence,
            "partly" if verdict == "reproduced" else verdict,
            f"{note}; {missing}",
        )
    answers = sorted(answers, key=lambda answer: "scale" not in answer)
    evidence = evidence + [{name: answer[name] for name in ("file", "key")} for answer in answers]
    told = " ".join(answer[words] for answer in answers)
    if verdict != "needs GPUs":
        joined = _worst([answer["verdict"] for answer in answers] + [verdict])
        told += f" {note[0].upper()}{note[1:]}."
    elif at_scale := [answer["verdict"] for answer in answers if "scale" in answer]:
        joined = _worst(at_scale)
    else:
        joined = _worst([answer["verdict"] for answer in answers])
        joined = "partly" if joined == "reproduced" else joined
        told += f" That is in small; {note}, which needs GPUs (imagenet/README.md)."
    return ours, evidence, joined, told


def ledger(folder: Path, summary: dict, answers: dict[str, list[dict]] | None = None) -> list[dict]:
    """Rows {id, statement, paper, ours, evidence, verdict, note, brief}, one per claim of
    data/paper_claims.json.

    `answers` are those of companion.report.questions; `folder` is one of the repository, such as
    results/. Raises KeyError for a claim without a judge, FileNotFoundError for missing evidence.
    """
    rows = []
    for claim in read_json(DATA / "paper_claims.json"):
        row = JUDGES[claim["id"]](folder, summary)
        mine = (answers or {}).get(claim["id"], [])
        ours, evidence, verdict, note = _with_studies(claim["id"], row, mine)
        brief = _with_studies(claim["id"], row, mine, "brief")[-1]
        rows.append(
            {
                **claim,
                "ours": ours,
                "evidence": evidence,
                "verdict": verdict,
                "note": note,
                "brief": brief,
            }
        )
    return rows
