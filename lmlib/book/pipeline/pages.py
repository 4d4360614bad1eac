"""The two pages that no one writes: *Execution*, what each chapter took, and *Claims*, what the book says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmlib.book import settings
from lmlib.book.pipeline.contents import Chapter
from lmlib.book.pipeline.execute import GIB, NAMED_VERSIONS, Result

CLAIM_MIME, THIS_RUN = "application/vnd.lmlib.claim+json", "this run"

_EXECUTION = """\
# Execution

Every chapter was executed from top to bottom for this site, profile `{profile}`, by the command `make book`.
Time is from the start of the chapter's kernel to its end. Peak memory is the resident memory of the kernel
and of all that it starts, added up and sampled five times a second. Unchanged chapters keep their last run.

```{{list-table}}
:header-rows: 1
:class: lm-wide

{rows}
```

## Machine

{machines}

## Versions

```{{list-table}}
:header-rows: 1

{versions}
```
"""

_CLAIMS = """\
# Claims

A chapter states what it shows as *claims*: a sentence, the value measured for it, and a bound that was
written before the run. The build fails when a claim does not hold. These are all {number} claims of the book,
as measured in the runs that the [](execution.md) page lists, or where the line below a claim says.

{sections}
"""


def execution_page(results: Sequence[Result]) -> str:
    """Markdown of the *Execution* page."""
    rows = [["Chapter", "Time", "Peak memory", "CPU threads", "Date (UTC)", "Machine"]]
    records = [(result.chapter, result.record) for result in results]
    machines = list(dict.fromkeys(_machine(record) for _, record in records))
    for chapter, record in records:
        rows.append(
            [
                _link(chapter),
                f"{record['seconds']:.0f} s",
                f"{record['peak_bytes'] / GIB:.2f} GiB",
                str(record["threads"]),
                record["date"][:16].replace("T", " "),
                str(machines.index(_machine(record)) + 1),
            ]
        )
    names = [name for name in ("python", *NAMED_VERSIONS) if any(name in r["versions"] for _, r in records)]
    versions = [["Chapter", *names]]
    versions += [[_link(chapter), *(r["versions"].get(name, "") for name in names)] for chapter, r in records]
    return _EXECUTION.format(
        profile=records[0][1]["profile"] if records else settings.DEFAULT_PARAMETERS["profile"],
        rows=list_table(rows),
        machines="\n".join(f"{number}. {text}" for number, text in enumerate(machines, 1)),
        versions=list_table(versions),
    )


def claims_page(executed: Sequence[tuple[Chapter, dict[str, Any]]]) -> str:
    """Markdown of the *Claims* page, from each chapter's executed notebook."""
    sections, number = [], 0
    for chapter, notebook in executed:
        claims = claims_of(notebook)
        number += len(claims)
        rows = [["Claim", "Measured", "Bound", "Holds"]]
        rows += [
            [
                plain(claim["statement"]) + _elsewhere(claim["where"]),
                plain(claim["shown"]),
                plain(claim["bound"]["text"]),
                "yes" if claim["holds"] else "**no**",
            ]
            for claim in claims
        ]
        table = f"```{{list-table}}\n:header-rows: 1\n:class: lm-wide lm-claims\n\n{list_table(rows)}\n```"
        sections.append(f"## {_link(chapter)}\n\n{table if claims else 'This chapter makes no claims.'}")
    return _CLAIMS.format(number=number, sections="\n\n".join(sections))


def _elsewhere(where: str) -> str:
    """A line of its own below the claim, by the style sheet; a column for it would be too narrow."""
    return "" if where == THIS_RUN else f" [{plain(where)}]{{.lm-claim-where}}"


def claims_of(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims that an executed notebook recorded, in order; a name claimed again counts once, the last."""
    found: dict[str, dict[str, Any]] = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            claim = output.get("data", {}).get(CLAIM_MIME)
            if claim is not None:
                found[claim["name"]] = claim
    return list(found.values())


def _link(chapter: Chapter) -> str:
    return f"[{plain(chapter.title)}](../chapters/{chapter.path.name})"


def _machine(record: dict[str, Any]) -> str:
    about = record["machine"]
    memory = about["memory_bytes"] / GIB
    return f"{about['processor']}, {about['cores']} cores, {memory:.0f} GiB memory, {about['system']}"


def list_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as the body of a `list-table`, the first one being the header."""
    lines = []
    for row in rows:
        lines += [("* - " if column == 0 else "  - ") + cell for column, cell in enumerate(row)]
    return "\n".join(line.rstrip() for line in lines)


def plain(text: str) -> str:
    """`text` as Markdown that shows just it: one line, nothing in it taken for markup."""
    kept = " ".join(str(text).split())
    return "".join("\\" + letter if letter in r"\`*_{}[]<>#$|~^@:" else letter for letter in kept)
