"Figures: safe in a page with others, the same bytes each time, no loss without matplotlib."

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gradbook.figures import BACKWARD, FORWARD, INK, Picture, figure, pixels, rounded, tidy

ROOT = Path(__file__).resolve().parent.parent
DRAWING = f"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" width="300" height="100">
<defs><clipPath id="c"><path d="M 0 0 L 1.23456 2"/></clipPath></defs><g id="unused">
<path clip-path="url(#c)" style="fill: {FORWARD.upper()}; font-family: X" d="M0 0"/>
<text>0.123456 &lt; 1</text></g></svg>"""


def test_tidy_makes_an_svg_that_can_share_a_page():
    text = tidy(DRAWING, "fig-a", 'say "less" & <more>')
    root = ET.fromstring(text)
    assert root.attrib["aria-label"] == 'say "less" & <more>' and root.attrib["role"] == "img"
    assert root.attrib["viewBox"] == "0 0 300 100" and "width" not in root.attrib
    assert re.findall(r' id="(.*?)"', text) == ["fig-a-1"] and "url(#fig-a-1)" in text
    assert f"fill:var(--gb-forward, {FORWARD})" in text and "font-family" not in text
    assert "1.23 2" in text and "0.123456 &lt; 1" in text, "numbers are rounded, texts are not"


def test_a_stylesheet_inside_and_broken_xml_are_refused():
    with pytest.raises(ValueError, match=r"fig-b.*style"):
        tidy("<svg><style>p {}</style><path d='M0 0'/></svg>", "fig-b", "x")
    with pytest.raises(ValueError, match=r"fig-b.*well formed"):
        tidy("<svg><path></svg>", "fig-b", "x")


@pytest.mark.parametrize("label", ["v-curve", "fig_a", "fig-A", ""])
def test_labels_follow_the_rule(label):
    with pytest.raises(ValueError, match="figure label"):
        figure(label, "c", alt="a")


def test_alt_text_is_demanded():
    with pytest.raises(ValueError, match="alt text"):
        figure("fig-a", "c", alt=" ")


def test_rounding():
    assert rounded("-0.001 12.345678 1e-05 3") == "0 12.35 1e-05 3"


def test_drawing_is_deterministic_and_follows_the_page():
    pytest.importorskip("matplotlib")

    def draw(fig):
        left, right = fig.subplots(1, 2)
        left.loglog([1, 10, 1e5], [1e-3, 1, 2], "o-", color=BACKWARD, label="a < b")
        left.legend()
        pixels(right, [[0, 4], [8, 16]])

    first, second = (figure("fig-a", "A < B", alt="x")(draw) for _ in range(2))
    assert isinstance(first, Picture) and first == second
    assert "10⁻³" in first.body and "tspan" not in first.body and len(first.body) < 20_000
    hexes = set(re.findall(r"(?<!, )#[0-9a-f]{6}", first.body))
    assert not hexes, f"colours that do not follow the page: {hexes}"
    assert INK in first.body and "A &lt; B" in first._repr_html_()
    ET.fromstring(first.body)


def test_png_on_request(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("GRADBOOK_FIGURE_FORMAT", "png")
    picture = figure("fig-a", "c", alt='a "b"')(lambda fig: fig.subplots().plot([1, 2]))
    start = '<img alt="a &quot;b&quot;" src="data:image/png;base64,'
    assert picture and picture.body.startswith(start)


def test_without_matplotlib_one_line_says_so():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from gradbook.figures import figure\n"
        "@figure('fig-a', 'c', alt='a')\ndef _(fig): raise SystemExit('drawn')"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    line = "figure fig-a left out: matplotlib is not installed (pip install 'gradbook[book]')"
    assert run.stdout.strip() == line and run.stderr == ""
