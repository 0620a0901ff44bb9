"""Writes simulated.md, violations and their causes, from what simulated.sh reports."""

import collections
import json
import pathlib
from typing import Any

_REPORTS = pathlib.Path("out/policies/simulated")
_TABLE = pathlib.Path(__file__).with_name("simulated.md")
_CAUSES = {"late_first_token": "first", "late_token": "next", "late_last_token": "last"}


def table(reports: list[tuple[str, dict[str, Any]]]) -> str:
    """Returns violations in % by kind, load and policy, of pairs of kind and report.

    A cell also counts violations by the first token that was late.
    """
    cells: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)
    for kind, report in reports:
        for run in report["runs"]:
            share = 1.0 - run["attainment"]
            causes = ", ".join(
                f"{_CAUSES.get(name, name)} {count}"
                for name, count in run["violations_by_cause"].items()
            )
            row = (kind, f"{run['qps']:g}")
            cells[row][run["policy"]] = f"{100 * share:.1f}" + (
                f" ({causes})" if causes else ""
            )
    policies = list(dict.fromkeys(name for row in cells.values() for name in row))
    body = [
        [kind, load, *(row.get(policy, "-") for policy in policies)]
        for (kind, load), row in cells.items()
    ]
    header = ["kind", "requests/s", *(f"`{policy}`" for policy in policies)]
    rule = ["---", "---", *("--:" for _ in policies)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))


def main() -> None:
    """Writes the tables of both conditions."""
    parts = []
    for condition in ("exact", "real"):
        paths = sorted((_REPORTS / condition).glob("*/report.json"))
        reports = [(path.parent.name, json.loads(path.read_text())) for path in paths]
        parts.append(f"## {condition}\n\n{table(reports)}\n")
    _TABLE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
