"""Stage the book: nbs/ -> _proc/, the one folder that both renderers read.

nbdev applies its directives and front matter; then one pass here does what neither renderer does
for a whole book: numbers sections, figures and equations chapter by chapter, resolves references
across pages (an unknown or doubled label is an error), labels exported code with its module, folds
hints and solutions under their exercise, and writes the sidebar and the reference pages.

    python -m tools.stage
"""

from __future__ import annotations

import ast
import html
import importlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from nbdev.process import Processor

from tools import api, bibliography
from tools.notebook import KEY, Cell, cell_id, from_cells, lines, load, page_name, save, source

ROOT = Path(__file__).resolve().parent.parent
NBS, STAGE = ROOT / "nbs", ROOT / "_proc"
Part = dict[str, Any]  # an entry of contents.yml: part, about, chapters
ANCHORS = {"sec": "section", "eq": "equation", "ex": "exercise", "fig": "fig"}
QUARTO_OPTIONS = {"code-fold", "code-summary", "echo", "output", "include", "label", "column"}
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`|\$\$.*?\$\$)", re.S | re.M)
REFERENCE = re.compile(r"(?<![\w\\`])@((?:fig|eq|sec|ex|ch)-[\w-]*\w)")
CITATION = re.compile(r"\[@([\w:-]+(?:; *@[\w:-]+)*)\]")


class BookError(Exception):
    "Something in the book does not fit together; the message names the page and what is wrong."


class KeepDirectives(Processor):  # type: ignore[misc]
    "nbdev forgets a cell's directives when it is done; the pass below still needs them."

    def cell(self, cell: Any) -> None:
        if cell.cell_type == "code":
            cell.metadata["gradbook"] = {str(k): str(v) for k, v in cell.directives_.items()}


# --- pages and their labels ---


@dataclass
class Page:
    "One staged notebook."

    path: Path  # where it lies in the stage, still with its number
    notebook: dict[str, Any]
    module: str  # "scalar.value", or ""
    names: list[str] = field(default_factory=list)  # what its exported cells define
    inner: set[str] = field(default_factory=set)  # methods and parameters of what its cells define

    @property
    def id(self) -> str:
        return page_name(self.path).id

    @property
    def number(self) -> str:
        return page_name(self.path).number

    @property
    def slug(self) -> str:
        return page_name(self.path).slug

    @property
    def href(self) -> str:
        return f"{self.slug}.html"

    def cells(self, kind: str) -> Iterator[Cell]:
        return (c for c in self.notebook["cells"] if c["cell_type"] == kind)


@dataclass
class Label:
    "What a reference such as @fig-v-curve becomes."

    text: str  # "Figure 1.2"
    href: str  # empty for a chapter that is still to come


def read_pages() -> list[Page]:
    pages = []
    for path in sorted(STAGE.glob("*.ipynb")):
        original = load(NBS / path.name)
        exp = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.M)
        found = [m[1] for c in original["cells"] if (m := exp.search(source(c)))]
        pages.append(Page(path, load(path), found[0] if found else ""))
    return pages


def add(labels: dict[str, Label], page: Page, name: str, text: str, anchor: str) -> None:
    if name in labels:
        raise BookError(f"{page.path.name}: the label {name} is used twice in the book")
    labels[name] = Label(text, f"{page.href}{anchor}")


def number_everything(page: Page, labels: dict[str, Label]) -> None:
    "Number the page's sections, equations and figures, and write the numbers into its cells."
    counts = {"sec": 0, "eq": 0, "fig": 0}

    def next_number(kind: str) -> str:
        counts[kind] += 1
        return f"{page.number}.{counts[kind]}" if page.number else str(counts[kind])

    def heading(m: re.Match[str]) -> str:
        number = f"{next_number('sec')} " if page.number else ""
        if m[2]:
            add(labels, page, m[2], f"Section {number.strip() or m[1]}", "#" + anchor_of(m[2]))
        return f"## {number}{m[1]}" + (f" {{#{anchor_of(m[2])}}}" if m[2] else "")

    def equation(m: re.Match[str]) -> str:
        number = next_number("eq")
        add(labels, page, m[2], f"Equation {number}", "#" + anchor_of(m[2]))
        tex = f"$$\n{m[1].strip()} \\tag{{{number}}}\n$$"
        return f"::: {{#{anchor_of(m[2])} .gb-equation}}\n{tex}\n:::"

    def exercise(m: re.Match[str]) -> str:
        add(
            labels,
            page,
            m[2],
            f"Exercise {page.number}.{int(m[2].split('-')[-1])}",
            "#" + anchor_of(m[2]),
        )
        return f"### {m[1]} {{#{anchor_of(m[2])}}}"

    def figure(m: re.Match[str]) -> str:
        number = next_number("fig")
        add(labels, page, m[1], f"Figure {number}", "#" + m[1])
        return f'{m[0]}<strong class="gb-number">Figure {number}.</strong> '

    if page.number:
        add(labels, page, f"ch-{page.slug}", f"Chapter {page.number}", "")
    for cell in page.notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            text = re.sub(
                r"\$\$((?:(?!\$\$).)+)\$\$\s*\{#(eq-[\w-]+)\}", equation, text, flags=re.S
            )
            text = re.sub(r"^### (.+?) \{#(ex-[\w-]+)\}$", exercise, text, flags=re.M)
            text = re.sub(r"^## (.+?)(?: \{#(sec-[\w-]+)\})?$", heading, text, flags=re.M)
            cell["source"] = lines(text)
        for out in cell.get("outputs", []):
            if "text/html" in out.get("data", {}):
                markup = "".join(out["data"]["text/html"])
                pattern = r'<figure[^>]*id="(fig-[\w-]+)".*?<figcaption>'
                out["data"]["text/html"] = lines(re.sub(pattern, figure, markup, flags=re.S))


def anchor_of(label: str) -> str:
    "Quarto gives ids that begin with sec- or eq- a meaning of its own, so anchors are spelled out."
    kind, _, rest = label.partition("-")
    return f"{ANCHORS[kind]}-{rest}"


# --- text ---


def outside_code(text: str, change: Callable[[str], str]) -> str:
    "Apply `change` to the parts of a Markdown text that are neither code nor display maths."
    return "".join(part if i % 2 else change(part) for i, part in enumerate(CODE.split(text)))


def resolve(text: str, page: str, labels: dict[str, Label], cites: bibliography.Entries) -> str:
    "Replace @references and [@citations] by links."

    def reference(m: re.Match[str]) -> str:
        if m[1] not in labels:
            raise BookError(f"{page}: @{m[1]} refers to nothing in the book")
        label = labels[m[1]]
        return f"[{label.text}]({label.href}){{.gb-ref}}" if label.href else label.text

    def citation(m: re.Match[str]) -> str:
        return "(" + "; ".join(cite(k.strip(" @")) for k in m[1].split(";")) + ")"

    def cite(key: str) -> str:
        if key not in cites:
            raise BookError(f"{page}: [@{key}] is not in nbs/references.bib")
        cites[key].cited_in.add(page)
        return f"[{cites[key].short}](references.html#ref-{key}){{.gb-cite}}"

    return outside_code(text, lambda s: REFERENCE.sub(reference, CITATION.sub(citation, s)))


def link_names(text: str, here: Page, home: dict[str, Page]) -> str:
    """Link the first mention in a cell of a name that an earlier chapter built.

    What stands between the brackets of `f(a, b)` in the same cell is a parameter's name.
    """
    signatures = re.findall(r"`\w+\(([\w, ]+)\)`", text)
    seen = set(re.findall(r"\w+", " ".join(signatures)))
    own = {*here.names, *here.inner}

    def link(m: re.Match[str]) -> str:
        page = home.get(m[1])
        if page is None or page.id >= here.id or m[1] in seen or m[1] in own:
            return m[0]
        seen.add(m[1])
        return f"[`{m[1]}`]({page.href}#def-{m[1]})"

    return re.sub(r"(?<![\[`\w])`([A-Za-z_]\w*)(?:\(\))?`(?![`\]])", link, text)


# --- cells ---


def markdown(text: str) -> Cell:
    return {"cell_type": "markdown", "id": "", "metadata": {}, "source": lines(text)}


def raw(markup: str) -> Cell:
    return markdown(f"```{{=html}}\n{markup}\n```")


def defined_names(code: str) -> list[str]:
    "Public functions, classes and constants that a cell defines at its top level."
    names = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [n.id for t in node.targets for n in ast.walk(t) if stored(n)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return [n for n in names if not n.startswith("_")]


def stored(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def inner_names(code: str) -> set[str]:
    "Methods of a cell's classes, and all its functions' parameters."
    nodes = list(ast.walk(ast.parse(code)))
    bodies = [child for n in nodes if isinstance(n, ast.ClassDef) for child in n.body]
    methods = {n.name for n in bodies if isinstance(n, ast.FunctionDef)}
    return methods | {n.arg for n in nodes if isinstance(n, ast.arg)}


def split_options(code: str) -> tuple[list[str], str]:
    "The `#|` lines a renderer understands, and the code without any."
    head = re.match(r"(?:[ \t]*#\|.*\n?)*", code)
    found = re.findall(r"#\|\s*([\w-]+):.*", head[0]) if head else []
    options = [o for o in (head[0] if head else "").splitlines() if any(k in o for k in found)]
    options = [o for o in options if re.match(r"#\|\s*([\w-]+):", o)[1] in QUARTO_OPTIONS]  # type: ignore[index]
    return options, code[head.end() :] if head else code


def labelled(page: Page, cell: Cell, module: str, code: str) -> list[Cell]:
    "An exported cell, under a small label that names its module and anchors what it defines."
    names = [n for n in defined_names(code) if n not in page.names]
    page.names += names
    anchors = "".join(f'<span id="def-{n}"></span>' for n in names)
    link = f'<a href="{api.page_of(module)}">gradbook.{module}</a>'
    label = f'<p class="gb-module">{anchors}{link}</p>'
    return [markdown("::: {.gb-exported}"), raw(label), cell, markdown(":::")]


def answers(page: Page, module: str, code: str) -> list[Cell]:
    "What the page shows of an exercise's key: hints one by one, then the solution, all folded."
    course = importlib.import_module(f"gradbook.{module}")
    cells = []
    for name in (n.name for n in ast.parse(code).body if isinstance(n, ast.ClassDef)):
        exercise = getattr(course, name)
        if not hasattr(exercise, "hints"):
            continue  # a helper of the key
        hints = list(exercise.hints)
        for i, hint in enumerate(hints, 1):
            title = "Hint" if len(hints) == 1 else f"Hint {i} of {len(hints)}"
            cells.append(fold(title, "gb-hint", hint))
        cells.append(
            fold("Solution", "gb-solution", f"```python\n{exercise.solution_source()}\n```")
        )
    return cells


def fold(title: str, kind: str, body: str) -> Cell:
    return markdown(
        f'<details class="{kind}">\n<summary>{html.escape(title)}</summary>\n\n{body}\n\n</details>'
    )


def code_cells(page: Page, cell: Cell) -> list[Cell]:
    "The staged form of one code cell."
    directives = cell["metadata"].pop("gradbook", {})
    options, code = split_options(source(cell))
    target = directives.get("exports", "").strip()
    exported = "exports" in directives
    if {"hide", "default_exp"} & set(directives):
        return []
    if exported and KEY.fullmatch(target):
        return answers(page, target, code)
    if "export" in directives:  # imports: part of the library, but nothing to read
        exported, target = True, directives["export"].strip()
        title = f"Imports of gradbook.{target or page.module}"
        options += ["#| code-fold: true", f'#| code-summary: "{title}"']
    page.inner |= inner_names(code)
    if re.match(r"\s*quiz\(", code):
        options.append("#| echo: false")
    cell["source"] = lines("\n".join([*options, code]))
    cell["metadata"] = {}
    return labelled(page, cell, target or page.module, code) if exported else [cell]


def run_box(page: Page) -> Cell:
    "How to run the chapter oneself: on this machine, or from the notebook file."
    file = html.escape(page.path.name)
    return raw(
        '<details class="gb-run"><summary>Run this chapter</summary>\n'
        "<p>In a clone of the book, <code>make lab</code> opens JupyterLab; the chapter is "
        f"<code>nbs/{file}</code>. "
        f'Or <a href="notebooks/{file}" download>download the notebook</a>, '
        "<code>pip install</code> the clone, and open it wherever you like.</p>\n</details>"
    )


def finish(page: Page) -> None:
    "Front matter, run box, labels and folds: everything that needs only the page itself."
    cells: list[Cell] = []
    for cell in page.notebook["cells"]:
        cells += code_cells(page, cell) if cell["cell_type"] == "code" else [cell]
    if cells and cells[0]["cell_type"] == "raw":
        cells[0]["source"] = lines(front_matter(page, source(cells[0])))
    if page.number:
        found = [
            i
            for i, c in enumerate(cells)
            if re.match(r"\*\*You will (build|do|find)\*\*", source(c))
        ]
        if not found:
            raise BookError(
                f"{page.path.name}: no line that begins with **You will build**, do or find"
            )
        facts = markdown(f"::: {{.gb-facts}}\n{source(cells[found[0]])}\n:::")
        cells[found[0] : found[0] + 1] = [facts, run_box(page)]
    page.notebook = from_cells(cells)


def front_matter(page: Page, text: str) -> str:
    meta = yaml.safe_load(text.strip().strip("-"))
    title = meta["title"]
    new = {"title": f"{page.number} · {title}" if page.number else title, "pagetitle": title}
    if meta.get("description"):
        new |= {"subtitle": meta["description"], "description": meta["description"]}
    return f"---\n{yaml.safe_dump(new, sort_keys=False, allow_unicode=True)}---\n"


# --- the whole book ---


def config(pages: list[Page], parts: list[Part]) -> str:
    "The site's configuration, with the parts in the sidebar; what is to come has no link."
    book = yaml.safe_load((NBS / "_quarto.yml").read_text(encoding="utf-8"))
    written = {p.path.stem: p for p in pages}

    def entry(stem: str, title: str) -> dict[str, str]:
        text = f"{page_name(stem).number} · {title}"
        return (
            {"href": f"{written[stem].slug}.ipynb", "text": text}
            if stem in written
            else {"text": f"{text} (coming)"}
        )

    sections = [
        {"section": part["part"], "contents": [entry(*c) for c in part["chapters"].items()]}
        for part in parts
    ]
    book["website"]["sidebar"]["contents"][1:1] = sections
    head = "# Written by tools.stage from nbs/_quarto.yml and nbs/contents.yml: edit those.\n"
    return head + yaml.safe_dump(book, sort_keys=False, allow_unicode=True)


def book_map(pages: list[Page], parts: list[Part]) -> str:
    "The parts of the book as a grid of cards, for the landing page."
    written = {p.path.stem: p for p in pages}

    def chapter(stem: str, title: str) -> str:
        text = f"{page_name(stem).number} · {html.escape(title)}"
        return (
            f'<li><a href="{written[stem].href}">{text}</a></li>'
            if stem in written
            else f"<li>{text}</li>"
        )

    cards = [
        f"<li><strong>{html.escape(p['part'])}</strong> {html.escape(p['about'])}<ul>"
        + "".join(chapter(*c) for c in p["chapters"].items())
        + "</ul></li>"
        for p in parts
    ]
    return '```{=html}\n<ul class="gb-parts">' + "\n".join(cards) + "</ul>\n```"


def stage() -> list[Page]:
    "Fill _proc/ from nbs/."
    from nbdev.serve import proc_nbs

    config_before = (
        (STAGE / "_quarto.yml").read_text(encoding="utf-8")
        if (STAGE / "_quarto.yml").exists()
        else ""
    )
    proc_nbs(force=True, n_workers=0)
    parts: list[Part] = yaml.safe_load((NBS / "contents.yml").read_text(encoding="utf-8"))
    planned = {stem for part in parts for stem in part["chapters"]}
    pages = read_pages()
    to_come = map(page_name, planned - {p.path.stem for p in pages})
    labels = {f"ch-{name.slug}": Label(f"Chapter {name.number}", "") for name in to_come}
    cites = bibliography.load(NBS / "references.bib")
    for page in pages:
        if page.number and page.path.stem not in planned:
            raise BookError(f"{page.path.name} is not in nbs/contents.yml")
        number_everything(page, labels)
        finish(page)
    home = {n: p for p in reversed(pages) for n in p.names}
    for page in pages:
        for cell in page.cells("markdown"):
            text = source(cell).replace("<!-- map -->", book_map(pages, parts))
            text = resolve(text, page.slug, labels, cites)
            cell["source"] = lines(
                text if text.startswith("```{=html}") else link_names(text, page, home)
            )
        write_page(page)
    for path in sorted(NBS.glob("*.qmd")):
        text = resolve(path.read_text(encoding="utf-8"), path.stem, labels, cites)
        (STAGE / path.name).write_text(text, encoding="utf-8")
    for name, text in {
        **api.pages(home, {p.module: p for p in pages if p.module}),
        **bibliography.page(cites, pages),
    }.items():
        (STAGE / name).write_text(text, encoding="utf-8")
    copy_assets()
    text = config(pages, parts)
    if text != config_before:
        print("_proc/_quarto.yml changed: commit it with the chapter")
    (STAGE / "_quarto.yml").write_text(text, encoding="utf-8")
    return pages


def write_page(page: Page) -> None:
    "Save under the page's own name, with ids that depend on nothing but the content."
    from collections import Counter

    taken: Counter[str] = Counter()
    for cell in page.notebook["cells"]:
        cell["id"] = cell_id(cell["cell_type"], source(cell), taken)
    page.path.unlink()
    save(page.notebook, STAGE / f"{page.slug}.ipynb")


def copy_assets() -> None:
    "Styles, scripts and fonts."
    for item in NBS.iterdir():
        if item.suffix in {".css", ".scss", ".js", ".svg"}:
            shutil.copy2(item, STAGE / item.name)
    shutil.copytree(NBS / "vendor", STAGE / "vendor", dirs_exist_ok=True)


def main() -> None:
    try:
        pages = stage()
    except BookError as error:
        raise SystemExit(f"stage: {error}") from None
    print(f"staged {len(pages)} pages in _proc/")


if __name__ == "__main__":
    main()
