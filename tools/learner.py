"""The learner's notebooks: each chapter without outputs and without the keys of its exercises.

They ship inside the package (`gradbook/course/files/`), where `gradbook start` finds them, together
with the titles of all chapters and the stored results that a chapter reads. Cells keep their ids.
What only the site understands - labels, references, callouts - becomes plain Markdown. Called by
`tools.export`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tools import bibliography
from tools.notebook import KEY, Cell, from_cells, lines, load, page_name, source

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "gradbook" / "course" / "files"
EXPORT = re.compile(r"^#\|\s*exports?(?:[ \t]+([\w.]+))?[ \t]*$", re.M)
DEFAULT = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.M)
TIMING = re.compile(r"^#\|\s*timing\b", re.M)
DIRECTIVE = re.compile(r"^#\|(?!\s*exercise:).*\n?", re.M)
RESULT = re.compile(r"results/([\w-]+\.json)")
REFERENCE = re.compile(r"(?<![\w\\`])@((?:fig|eq|sec|ex|ch)-[\w-]*\w)")
CITATION = re.compile(r"\[@([\w:-]+(?:; *@[\w:-]+)*)\]")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.S | re.M)
START = (
    "from gradbook.course.rebuild import here\n\n"
    "here()  # uses what you have rebuilt of the library, and says so"
)

Labels = dict[str, str]


def chapters() -> list[Path]:
    return sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if "" < page_name(p).id < "90")


def labels_of(path: Path) -> Labels:
    "What a reference to each label of a chapter is called: Section 3.4, Figure 3.1, ..."
    number = page_name(path).number
    labels = {f"ch-{page_name(path).slug}": f"chapter {number}"}
    counts = {"fig": 0, "eq": 0}

    def add(label: str) -> None:
        kind = label.partition("-")[0]
        counts[kind] += 1
        word = {"fig": "Figure", "eq": "Equation"}[kind]
        labels[label] = f"{word} {number}.{counts[kind]}"

    for cell in load(path)["cells"]:
        text = source(cell)
        if cell["cell_type"] == "code":
            for label in re.findall(r'\b(?:figure|svg)\(\s*"(fig-[\w-]+)"', text):
                add(label)
            continue
        for label in re.findall(r"\$\$\s*\{#(eq-[\w-]+)\}", text):
            add(label)
        for title, label in re.findall(r"^## (.+?) \{#(sec-[\w-]+)\}$", text, re.M):
            labels[label] = f"“{title}” in chapter {number}"
        for label in re.findall(r"^### .+? \{#(ex-[\w-]+)\}$", text, re.M):
            labels[label] = f"exercise {number}.{int(label.split('-')[-1])}"
    return labels


def plain_markdown(text: str, chapter: str, labels: Labels, cites: bibliography.Entries) -> str:
    "A cell's text without what only the site understands."

    def equation(m: re.Match[str]) -> str:
        number = labels[m[2]].removeprefix("Equation ")
        return f"$${m[1].rstrip()} \\tag{{{number}}}$$"

    def callout(m: re.Match[str]) -> str:
        title = re.search(r'title="([^"]*)"', m[1])
        body = f"**{title[1] if title else 'Note'}.** {m[2].strip()}"
        return "\n".join(f"> {line}".rstrip() for line in body.splitlines())

    def reference(m: re.Match[str]) -> str:
        return labels.get(m[1], "a later chapter").removesuffix(f" in chapter {chapter}")

    def citation(m: re.Match[str]) -> str:
        keys = [key.strip(" @") for key in m[1].split(";")]
        return "(" + "; ".join(cites[k].short if k in cites else k for k in keys) + ")"

    text = re.sub(r"\$\$((?:(?!\$\$).)+)\$\$\s*\{#(eq-[\w-]+)\}", equation, text, flags=re.S)
    text = re.sub(r"^::: \{(.*?)\}\n(.*?)\n:::$", callout, text, flags=re.S | re.M)
    text = re.sub(r"^(#+ .+?) \{#[\w-]+\}$", r"\1", text, flags=re.M)
    parts = CODE.split(text)
    return "".join(
        part if k % 2 else REFERENCE.sub(reference, CITATION.sub(citation, part))
        for k, part in enumerate(parts)
    )


def learner(path: Path, labels: Labels, cites: bibliography.Entries) -> dict[str, Any]:
    "The notebook that a learner gets of a chapter."
    notebook, cells, modules = load(path), [], []
    own = ""
    start: Cell = {"cell_type": "code", "id": "gradbook-here", "source": lines(START)}
    library: Cell = {"cell_type": "code", "id": "gradbook-library", "source": []}
    for cell in notebook["cells"]:
        text, role = source(cell), {}
        if cell["cell_type"] == "markdown":
            text = plain_markdown(text, page_name(path).number, labels, cites)
            cells.append({**cell, "source": lines(text)})
            if re.search("^## Exercises", text, re.M):
                cells.append(library)
            continue
        if m := DEFAULT.search(text):
            own = m[1]
            modules.append(own)
            cells.append(start)
            continue
        if m := EXPORT.search(text):
            module = m[1] or own
            if KEY.fullmatch(module):
                continue
            modules += [module] if module not in modules else []
            role["module"] = module
        if TIMING.search(text):
            role["timing"] = True
        text = DIRECTIVE.sub("", text)
        marks = {"gradbook": role} if role else {}
        cells.append({**cell, "metadata": marks, "source": lines(text)})
    body = "".join(f"from gradbook.{m} import *\n" for m in modules)
    library["source"] = lines(f"# The exercises use the library's own names.\n{body}".rstrip())
    for cell in cells:
        cell.setdefault("metadata", {})
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
    made = from_cells([dict(sorted(c.items())) for c in cells])
    code = "\n".join(source(c) for c in cells if c["cell_type"] == "code")
    made["metadata"]["gradbook"] = {
        "chapter": page_name(path).id,
        "modules": modules,
        "results": sorted(set(RESULT.findall(code))),
    }
    return made


def put(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write() -> None:
    "Fill gradbook/course/files/ and take away what no chapter needs any more."
    FILES.mkdir(parents=True, exist_ok=True)
    contents = yaml.safe_load((ROOT / "nbs" / "contents.yml").read_text(encoding="utf-8"))
    titles = {k: t for part in contents for k, t in part["chapters"].items() if k < "90"}
    planned = {f"ch-{n.slug}": f"chapter {n.number}" for n in map(page_name, titles)}
    labels = planned | {k: v for path in chapters() for k, v in labels_of(path).items()}
    cites = bibliography.load(ROOT / "nbs" / "references.bib")
    made = {"contents.json": json.dumps(titles, indent=1, ensure_ascii=False) + "\n"}
    for path in chapters():
        notebook = learner(path, labels, cites)
        made[path.name] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        for name in notebook["metadata"]["gradbook"]["results"]:
            stored = ROOT / "nbs" / "results" / name
            made[name] = stored.read_text(encoding="utf-8")
    for name, text in made.items():
        put(FILES / name, text)
    for path in FILES.iterdir():
        if path.name not in made:
            path.unlink()
