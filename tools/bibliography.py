"The bibliography: nbs/references.bib, read by bibtexparser, as short citations and one page."

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.stage import Page

Entries = dict[str, "Entry"]


@dataclass
class Entry:
    "One publication."

    key: str
    fields: dict[str, str]
    cited_in: set[str] = field(default_factory=set)

    @property
    def surnames(self) -> list[str]:
        if "author" not in self.fields:
            return [self.fields["organization"]]
        people = self.fields["author"].split(" and ")
        return [p.split(",")[0].strip() if "," in p else p.split()[-1] for p in people if p.strip()]

    @property
    def short(self) -> str:
        "As it stands in the text: Griewank and Walther 2008."
        names = self.surnames
        who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"{who} {self.fields['year']}"

    @property
    def long(self) -> str:
        f = self.fields
        place = (
            f.get("journal")
            or f.get("booktitle")
            or f.get("publisher")
            or f.get("howpublished")
            or ""
        )
        volume = f" {f['volume']}" if "volume" in f else ""
        volume += f"({f['number']})" if "number" in f else ""
        pages = f", {f['pages'].replace('--', '–')}" if "pages" in f else ""
        link = (
            f" <https://doi.org/{f['doi']}>"
            if "doi" in f
            else f" <{f['url']}>"
            if "url" in f
            else ""
        )
        authors = f.get("author", f.get("organization", "")).replace(" and ", "; ")
        return f"{authors} ({f['year']}). *{f['title']}*. {place}{volume}{pages}.{link}"


def load(path: Path) -> Entries:
    import bibtexparser

    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        database = bibtexparser.load(file)
    for e in database.entries:
        if re.fullmatch(r"\{[^{}]+\}", e.get("author", "")):  # braces: the name of a body
            e["organization"] = e.pop("author")
    plain = {
        e["ID"]: {k: v.replace("{", "").replace("}", "").replace("\n", " ") for k, v in e.items()}
        for e in database.entries
    }
    return {key: Entry(key, fields) for key, fields in plain.items()}


def page(entries: Entries, pages: list[Page]) -> dict[str, str]:
    "The staged bibliography page, each entry with the chapters that cite it."
    titles = {p.slug: p for p in pages}
    rows = []
    for entry in sorted(entries.values(), key=lambda e: (e.surnames, e.fields["year"])):
        cited = [titles[s] for s in sorted(entry.cited_in) if s in titles]
        where = ", ".join(f"[Chapter {p.number}]({p.href})" for p in cited if p.number)
        note = f" Cited in {where}." if where else ""
        rows.append(f"::: {{#ref-{entry.key} .gb-reference}}\n{entry.long}{note}\n:::")
    head = "---\ntitle: Bibliography\nsubtitle: What the book stands on\n---\n\n"
    return {"references.qmd": head + "\n\n".join(rows) + "\n"}
