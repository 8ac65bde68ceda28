"What is done to the pages after they are rendered."

from __future__ import annotations

import html
import re

import pytest

from tools.render import colour_cpp

LINES = [
    "#define N 8",
    'extern "C" __global__ void k(float* x) {  // a < b',
    "    if (x[0] < 1) return;",
]


def smalldocs(lines: list[str], raw: str = '<span class="st">r</span>') -> str:
    "A cell with a string, as that renderer writes it."
    inside = "".join(f'<span class="st">{html.escape(line)}</span>\n' for line in lines)
    quotes = '<span class="st">&quot;&quot;&quot;</span>'
    code = f'K = {raw}{quotes}\n{inside}{quotes}\nname = <span class="st">&quot;return&quot;</span>'
    return f'<code class="sourceCode python">{code}</code>'


def quarto(lines: list[str]) -> str:
    "The same by Pandoc, which gives each line an anchor."
    spans = ["r&quot;&quot;&quot;", *map(html.escape, lines), "&quot;&quot;&quot;"]
    rows = [f'<span class="vs">{s}</span>' for s in spans]
    rows.append('name = <span class="st">&quot;return&quot;</span>')
    anchors = [f'<span id="cb1-{k}"><a href="#cb1-{k}"></a>{r}</span>' for k, r in enumerate(rows)]
    return '<code class="sourceCode python">' + "\n".join(anchors) + "</code>"


@pytest.mark.parametrize("page", [smalldocs(LINES), quarto(LINES)], ids=["smalldocs", "quarto"])
def test_kernels_in_strings_are_coloured_as_cpp(page: str) -> None:
    pytest.importorskip("smalldocs", reason="the renderer is not installed")

    def text(markup: str) -> str:
        return html.unescape(re.sub(r"<[^>]*>", "", markup))

    found = colour_cpp(f"<p>before</p>{page}<p>after</p>")
    assert text(found) == text(f"<p>before</p>{page}<p>after</p>")
    assert '<span class="co">// a &lt; b</span>' in found
    assert '<span class="cf">if</span>' in found and '<span class="cf">return</span>' in found
    assert '<span class="pp">' in found and '<span class="dt">float</span>' in found
    assert '<span class="st">&quot;return&quot;</span>' in found  # Python's own strings stay


def test_other_strings_stay_as_they_are() -> None:
    pytest.importorskip("smalldocs", reason="the renderer is not installed")
    for page in (smalldocs(["return if", "float"]), smalldocs(LINES, raw="")):
        assert colour_cpp(page) == page
