"""Render the stage into _site/: by Quarto where it is installed, by smalldocs otherwise.

python -m tools.render [--with quarto|smalldocs]
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGE, SITE = ROOT / "_proc", ROOT / "_site"
PYTHON = re.compile(r'<code class="sourceCode python">.*?</code>', re.S)
STRING = re.compile(r'<span class="(?:st|vs)">(.*?)</span>', re.S)
CPP = re.compile(r"__global__|__device__|#define|#include|>(?:static|struct) |extern &quot;C")


def quarto() -> None:
    subprocess.run(["quarto", "render", str(STAGE), "--no-execute"], check=True)


def smalldocs() -> None:
    "The pure-Python renderer, with its maths taken from our own copy of KaTeX."
    from smalldocs import layout
    from smalldocs.site import build

    layout.KATEX = "vendor/katex"
    for warning in build(STAGE, quiet=True).warnings:
        if not warning.endswith("is ignored"):  # options that only Quarto knows
            print("smalldocs:", warning)
    for page in SITE.glob("*.html"):
        page.write_text(tidy(page.read_text(encoding="utf-8")), encoding="utf-8")


def colour_cpp(page: str) -> str:
    """C++ in the raw strings of Python code, coloured as C++ and not as one long string.

    Both renderers put each line of such a string into a span of its own.
    """
    from smalldocs.highlight import highlight

    def block(found: re.Match[str]) -> str:
        if not CPP.search(found[0]):
            return found[0]
        inside, last = False, ""

        def line(m: re.Match[str]) -> str:
            nonlocal inside, last
            text, before = html.unescape(m[1]), last
            last = text
            if inside and '"""' not in text:
                return str(highlight(text, "cuda"))
            if text.strip().endswith('"""'):
                inside = not inside and "r" in (before, text.strip()[0])
            return m[0]

        return STRING.sub(line, found[0])

    return PYTHON.sub(block, page)


def tidy(page: str) -> str:
    "What smalldocs leaves to wish for: entries without a link, the wordmark on phones, a label."
    page = re.sub(
        r'<a href="" class="sidebar-item-text sidebar-link">(<span class="menu-text">.*?</span>)'
        "</a>",
        r'<span class="sidebar-item-text gb-coming">\1</span>',
        page,
    )
    mark = '<img src="wordmark.svg" alt="gradbook, start page">'
    home = f'<a href="index.html" class="gb-home">{mark}</a>'
    page = page.replace("</button></div></nav></header>", f"</button>{home}</div></nav></header>")
    return page.replace(
        'title="Toggle dark mode"',
        'title="Toggle dark mode" role="button" aria-label="Toggle dark mode"',
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    renderers = {"quarto": quarto, "smalldocs": smalldocs}
    default = "quarto" if shutil.which("quarto") else "smalldocs"
    parser.add_argument("--with", dest="renderer", choices=renderers, default=default)
    args = parser.parse_args()
    shutil.rmtree(SITE, ignore_errors=True)
    renderers[args.renderer]()
    for path in SITE.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        if (coloured := colour_cpp(page)) != page:
            path.write_text(coloured, encoding="utf-8")
    (SITE / "notebooks").mkdir(exist_ok=True)
    for notebook in (ROOT / "nbs").glob(
        "[0-9]*.ipynb"
    ):  # for download; a renderer would make pages of them
        shutil.copy2(notebook, SITE / "notebooks" / notebook.name)
    print(f"rendered {len(list(SITE.glob('*.html')))} pages in _site/ with {args.renderer}")


if __name__ == "__main__":
    main()
