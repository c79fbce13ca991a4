"""What was found beyond the claims: templates/sentences/findings.md.j2 with its numbers."""

from companion.published import fid_ratios
from companion.report import rendering
from companion.report.evidence import Reader


def findings(reader: Reader) -> list[dict]:
    """Rows {id, title, statement, notebooks, verdict, evidence}, one for each finding.

    Raises FileNotFoundError or KeyError for a number that the results do not have."""
    return [
        {
            "id": row["id"],
            "title": row["title"],
            "statement": row["text"],
            "notebooks": row["notebooks"],
            "verdict": "found here",
            "evidence": row["evidence"],
        }
        for row in rendering.items(reader, "findings.md.j2", paper=fid_ratios())
    ]
