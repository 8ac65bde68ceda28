"""Check the rendered site: links, anchors, ids, alt texts, and no request to another host.

python -m tools.check
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SITE = Path(__file__).resolve().parent.parent / "_site"
LOADS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
}


@dataclass
class Links(HTMLParser):
    "What one page links to, loads and defines."

    targets: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        a = {k: v or "" for k, v in attrs}
        if "id" in a:
            self.ids.append(a["id"])
        if tag == "a" and a.get("href"):
            self.targets.append(a["href"])
        if tag in LOADS and a.get(LOADS[tag]):
            self.loads.append(a[LOADS[tag]])
        if tag == "img" and "alt" not in a:
            self.problems.append(f"image without alt text: {a.get('src', '')[:60]}")
        if (
            tag == "svg"
            and a.get("role") == "img"
            and not (a.get("aria-label") or a.get("aria-labelledby"))
        ):
            self.problems.append("SVG picture without a label")


def read(site: Path) -> dict[str, Links]:
    pages = {}
    for path in sorted(site.glob("*.html")):
        pages[path.name] = Links()
        pages[path.name].feed(path.read_text(encoding="utf-8"))
    return pages


def check(site: Path = SITE) -> list[str]:
    "Everything that is wrong with the site, one line each."
    pages = read(site)
    if "index.html" not in pages:
        return [f"there is no index.html among the {len(pages)} pages of the site"]
    found: list[str] = []
    for name, page in pages.items():
        found += [f"{name}: {p}" for p in page.problems]
        found += [
            f"{name}: the id {i} is used twice"
            for i in sorted({i for i in page.ids if page.ids.count(i) > 1})
        ]
        found += [f"{name}: loads {u} from another host" for u in page.loads if urlsplit(u).netloc]
        found += [
            f"{name}: {u} does not exist"
            for u in page.loads
            if not urlsplit(u).netloc and missing(site, u)
        ]
        for target in page.targets:
            found += broken(site, pages, name, target)
        for css in re.findall(r"url\(([^)]+)\)", (site / name).read_text(encoding="utf-8")):
            if urlsplit(css.strip("'\"")).scheme in {"http", "https"}:
                found.append(f"{name}: a style loads {css}")
    for sheet in site.rglob("*.css"):
        for url in re.findall(
            r"url\(['\"]?(https?://[^)]+)|@import\s+['\"](https?://[^'\"]+)",
            sheet.read_text(encoding="utf-8"),
        ):
            found.append(f"{sheet.relative_to(site)}: loads {''.join(url)}")
    return found


def missing(site: Path, url: str) -> bool:
    parts = urlsplit(url)
    return not parts.scheme and bool(parts.path) and not (site / unquote(parts.path)).exists()


def broken(site: Path, pages: dict[str, Links], name: str, target: str) -> list[str]:
    "A link that leads nowhere, as a list of one message; an empty list if it is fine."
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return []
    to = parts.path.removeprefix("./") or ("index.html" if target.startswith("./") else name)
    if missing(site, to):
        return [f"{name}: the link {target} leads nowhere"]
    if parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].ids:
        return [f"{name}: the link {target} leads to no place on {to}"]
    return []


def main() -> None:
    problems = check()
    for problem in problems:
        print(problem)
    if problems:
        raise SystemExit(f"{len(problems)} problems in _site/")
    pages = read(SITE)
    links = sum(len(p.targets) for p in pages.values())
    print(f"checked {len(pages)} pages, {links} links: no problem")


if __name__ == "__main__":
    main()
