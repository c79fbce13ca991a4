"""The claims ledger: for each claim of the paper, what was measured here, where it is recorded, and
the verdict that its 95 % confidence interval allows.

Three steps, apart from each other: `MEASURED` collects numbers, `JUDGES` compares them with the
claim, templates/claims.md.j2 puts both into words. Answers of studies join at the end."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from companion.published import fid_ratios
from companion.report import rendering
from companion.report.evidence import Place, Reader
from companion.report.results import SAMPLERS, STUDY
from nag.support.files import read_json
from nag.support.paths import DATA
from nag.support.uncertainty import independent_ratio, outcome, verdict

OPEN = "inconclusive"
VERDICTS = ("reproduced", "partly", "contradicted", OPEN, "needs GPUs")
NEAR = 1.25  # C5: "close to the quality of CFG" is a distance of at most 1.25 of CFG's
TOLERANCE = 0.1  # C3: the relative error of Statement 1 that we accept
Row = dict  # {"family", "sampler", "value", "low", "high", "verdict"}, what is known of them


# ---- collecting


def _interval(x: Mapping[str, Any]) -> Row:
    return {end: x[end] for end in ("value", "low", "high")}


def _papers(reader: Reader, family: str) -> str | None:
    """The file of the study of the paper's own sampler in 250 steps, if it has run."""
    file = STUDY.format(family=family)
    return file if reader.has(file) else None


def _stochastic(reader: Reader, family: str) -> str:
    """The stochastic sampler of a family with its steps."""
    file = _papers(reader, family)
    steps = (
        reader.content(file)["steps"]
        if file
        else reader.content(f"results/curves/shift-sde-{family}.json")["steps"]
    )
    return f"{SAMPLERS[family][1]}, {steps} steps"


def _of_samplers(reader: Reader, families: Sequence[str], key: str, arm: str = "none") -> list[Row]:
    """One number of the shift, of every family with both of its samplers: the stochastic one in the
    paper's 250 steps where its study has run, else in fewer."""

    def stochastic(family: str) -> Row:
        if file := _papers(reader, family):
            return _interval(reader.number(file, f"shift/{arm}/{key}"))
        return _interval(reader.result(f"shift-{family}", f"sde-{arm}/{key}"))

    rows = []
    for family in families:
        fast = _interval(reader.result(f"shift-{family}", f"{arm}/{key}"))
        rows += [
            {"family": family, "sampler": SAMPLERS[family][0]} | fast,
            {"family": family, "sampler": _stochastic(reader, family)} | stochastic(family),
        ]
    return rows


def _ratios(reader: Reader, families: Sequence[str], key: str) -> list[Row]:
    """A ratio of Fréchet distances, of every family with its deterministic sampler."""
    return [
        {"family": family, "sampler": SAMPLERS[family][0]}
        | _interval(reader.result(f"ratios-{family}", key))
        for family in families
    ]


def _papers_ratios(reader: Reader, families: Sequence[str], key: str) -> list[Row]:
    """The same with the paper's samplers, of the families whose study has run."""
    return [
        {"family": family, "sampler": _stochastic(reader, family)}
        | _interval(reader.number(file, f"ratios/{key}"))
        for family in families
        if (file := _papers(reader, family))
    ]


def _of_both_samplers(reader: Reader, families: Sequence[str], key: str) -> list[Row]:
    """A ratio with the deterministic samplers, then with the paper's where they have run."""
    return _ratios(reader, families, key) + _papers_ratios(reader, families, key)


def _late_shift(reader: Reader, families: Sequence[str]) -> list[Row]:
    return _of_samplers(reader, families, "shift_late")


def _growth(reader: Reader, families: Sequence[str]) -> list[Row]:
    return _of_samplers(reader, families, "growth")


def _toy(reader: Reader, families: Sequence[str]) -> list[Row]:
    return [_interval(reader.result("toy", "statement_1"))]


def _late_ratio(reader: Reader, families: Sequence[str]) -> list[Row]:
    """|late shift| with NAG over that without; the unguided one, and both in the middle."""
    columns = {
        "unguided": _of_samplers(reader, families, "shift_late"),
        "middle": _of_samplers(reader, families, "middle"),
        "middle with NAG": _of_samplers(reader, families, "middle", "nag"),
    }
    rows = _of_samplers(reader, families, "late_ratio", "nag")
    return [
        row | {name: _interval(column[k]) for name, column in columns.items()}
        for k, row in enumerate(rows)
    ]


def _over_cfg(reader: Reader, families: Sequence[str]) -> list[Row]:
    """NAG over CFG, with NAG over no guidance and the point values of the three distances."""

    def distances(file: str, key: str) -> dict[str, float]:
        return {
            arm: reader.number(file, f"{key}{arm}/fd_inf/value") for arm in ("none", "nag", "cfg")
        }

    rows = _of_both_samplers(reader, families, "nag over cfg")
    gains = _of_both_samplers(reader, families, "nag over none")
    found = [distances(f"results/metrics/quality-{family}.json", "") for family in families]
    found += [distances(file, "arms/") for f in families if (file := _papers(reader, f))]
    return [
        row | {"gain": _interval(gain), "distance": distance}
        for row, gain, distance in zip(rows, gains, found, strict=True)
    ]


def _pair_over_cfg(reader: Reader, families: Sequence[str]) -> list[Row]:
    return _of_both_samplers(reader, families, "cfg+nag over cfg")


def _gains_compared(reader: Reader, families: Sequence[str]) -> list[Row]:
    """SiT's ratio of NAG to no guidance over DiT's, with both: of the deterministic samplers, and
    of the paper's where both studies have run; nothing without a DiT."""
    both = [f for f in ("sit", "dit") if f in families]
    return [
        independent_ratio(*gains) | {"gains": gains}
        for read in (_ratios, _papers_ratios)
        if len(gains := read(reader, both, "nag over none")) == 2
    ]


def _nothing(reader: Reader, families: Sequence[str]) -> list[Row]:
    return []


MEASURED: dict[str, Callable[[Reader, Sequence[str]], list[Row]]] = {
    "C1": _late_shift,
    "C2": _growth,
    "C3": _toy,
    "C4": _late_ratio,
    "C5": _over_cfg,
    "C6": _pair_over_cfg,
    "C7": _nothing,
    "C8": _gains_compared,
    "C9": _nothing,
}


# ---- judging


def _positive(x: Row) -> str:
    return verdict(x, 1)


def _below_one(x: Row) -> str:
    return verdict(x, -1, 1)


def _within_tolerance(x: Row) -> str:
    least, most = 1 - TOLERANCE, 1 + TOLERANCE
    if least <= x["low"] and x["high"] <= most:
        return "reproduced"
    return "contradicted" if x["high"] < least or x["low"] > most else OPEN


def _reduced(x: Row) -> str:
    """A shift that is not there cannot be reduced."""
    return _below_one(x) if verdict(x["unguided"], 1) == "reproduced" else OPEN


def _near_cfg(x: Row) -> str:
    """NAG improves and is near CFG, clearly; where no guidance is near too, it says nothing."""
    far = x["distance"]["none"] / x["distance"]["cfg"] > NEAR
    if outcome(x["gain"]) == "better" and far and x["high"] <= NEAR:
        return "reproduced"
    return "contradicted" if outcome(x["gain"]) == "worse" else OPEN


def _dit_gains_more(x: Row) -> str:
    return verdict(x, 1, 1)


JUDGES: dict[str, Callable[[Row], str]] = {
    "C1": _positive,
    "C2": _positive,
    "C3": _within_tolerance,
    "C4": _reduced,
    "C5": _near_cfg,
    "C6": _below_one,
    "C8": _dit_gains_more,
}


def joined(verdicts: Sequence[str]) -> str:
    """The verdict that all share; if they differ, partly, and without any, inconclusive."""
    found = set(verdicts) or {OPEN}
    return found.pop() if len(found) == 1 else "partly"


def with_studies(own: str, answers: Sequence[dict], complete: bool = True) -> str:
    """The verdict of a claim from our `own` and those of the studies' answers.

    Without a study that a claim needs (not `complete`) it is partly at best. A claim that needs
    GPUs is decided by answers at the paper's scale, if there are any; small studies show a part."""
    found = [answer["verdict"] for answer in answers]
    if own != "needs GPUs":
        all_of_it = joined([own, *found])
        return "partly" if all_of_it == "reproduced" and not complete else all_of_it
    if at_scale := [answer["verdict"] for answer in answers if "scale" in answer]:
        return joined(at_scale)
    if not found:
        return own
    return "partly" if joined(found) == "reproduced" else joined(found)


# ---- the ledger


def _places(answers: Sequence[dict]) -> list[Place]:
    return [{name: answer[name] for name in ("file", "key")} for answer in answers]


def ledger(
    reader: Reader,
    families: Sequence[str],
    answers: dict[str, list[dict]] | None = None,
    source: Path = DATA / "paper_claims.json",
) -> list[dict]:
    """Rows {id, statement, paper, ours, verdict, note, brief, evidence}, one for each claim.

    `answers` are those of companion.report.questions: "note" has all of their numbers, "brief" the
    most important. Raises KeyError or FileNotFoundError for
    missing evidence."""
    claims = {claim["id"]: claim for claim in read_json(source)}
    ours, places, verdicts, joining = {}, {}, {}, {}
    for name in claims:
        with reader.recording() as places[name]:
            measured = MEASURED[name](reader, families)
        judge = JUDGES.get(name)
        ours[name] = [x | {"verdict": judge(x)} for x in measured] if judge else []
        own = joined([x["verdict"] for x in ours[name]]) if judge else "needs GPUs"
        joining[name] = sorted(
            (answers or {}).get(name, []), key=lambda answer: "scale" not in answer
        )
        # only studies measure Domain Guidance, which is half of C6
        complete = name != "C6" or bool(joining[name])
        verdicts[name] = with_studies(own, joining[name], complete)
    notes, briefs = (
        rendering.items(
            reader,
            "claims.md.j2",
            words=words,
            ours=ours,
            answers=joining,
            near=NEAR,
            tolerance=TOLERANCE,
            paper=fid_ratios(),
        )
        for words in ("sentence", "brief")
    )
    return [
        claims[row["id"]]
        | {
            "ours": ours[row["id"]],
            "verdict": verdicts[row["id"]],
            "note": row["text"],
            "brief": brief["text"],
            "evidence": places[row["id"]] + row["evidence"] + _places(joining[row["id"]]),
        }
        for row, brief in zip(notes, briefs, strict=True)
    ]
