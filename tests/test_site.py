"The rendered site in headless Chromium: on a desk, on a phone, in the dark."

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.check import check

SITE = Path(__file__).resolve().parent.parent / "_site"
PAGES = sorted(p.name for p in SITE.glob("*.html"))
VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}
CONTRAST = """() => {
  const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const lum = c => { const [r, g, b] = rgb(c).map(v => linear(v / 255));
                     return .2126 * r + .7152 * g + .0722 * b };
  const ground = e => { while (e) { const c = getComputedStyle(e).backgroundColor;
                                    if (!/, 0\\)|transparent/.test(c)) return c;
                                    e = e.parentElement } return 'rgb(255,255,255)' };
  const bad = [];
  const what = 'main p, main li, main pre, main pre span, main td, main h2, main summary, svg text';
  for (const e of document.querySelectorAll(what)) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), ink = e.tagName === 'text' ? style.fill : style.color;
    if (!/^rgb/.test(ink)) continue;
    const [a, b] = [lum(ink), lum(ground(e))].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    const text = `${e.tagName} "${e.textContent.trim().slice(0, 30)}"`;
    if (ratio < 4.0) bad.push(`${text} ${ink} on ${ground(e)}: ${ratio.toFixed(1)}`);
  }
  return bad.slice(0, 8);
}"""


def test_links_anchors_and_alt_texts() -> None:
    if not PAGES:
        pytest.skip("the site is not built: make book")
    assert check(SITE) == []


def test_the_checker_sees_what_is_broken(tmp_path: Path) -> None:
    page = '<a href="gone.html">a</a><a href="#nowhere">b</a><img src="x.png"><script src="https://example.org/x.js"></script>'
    (tmp_path / "index.html").write_text(f'<p id="one"></p><p id="one"></p>{page}')
    found = "\n".join(check(tmp_path))
    for what in (
        "gone.html leads nowhere",
        "#nowhere leads to no place",
        "alt text",
        "another host",
        "used twice",
        "x.png",
    ):
        assert what in found


@pytest.mark.parametrize("view", VIEWS)
def test_every_page(browser: Any, site_url: str, view: str) -> None:
    "No foreign request, no console message, no KaTeX error, no sideways scrolling, readable."
    problems: list[str] = []
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((site_url, "data:"))
            else problems.append(f"request to {r.url}")
        ),
    )
    page.on(
        "console",
        lambda m: problems.append(f"console: {m.text}") if m.type in {"error", "warning"} else None,
    )
    page.on("pageerror", lambda e: problems.append(f"script error: {e}"))
    page.on(
        "response",
        lambda r: problems.append(f"{r.status} for {r.url}") if r.status >= 400 else None,
    )
    for name in PAGES:
        page.goto(f"{site_url}/{name}")
        if page.locator(".katex-error").count():
            problems.append(
                f"{name}: {page.locator('.katex-error').first.text_content()} does not render"
            )
        width = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        if width > 1:
            problems.append(f"{name}: {width} pixels wider than the {view} screen")
        problems += [f"{name} ({view}): {p}" for p in page.evaluate(CONTRAST)]
    context.close()
    assert problems == []


def test_code_needs_no_sideways_scrolling_on_a_laptop(browser: Any, site_url: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    wide = (
        "() => [...document.querySelectorAll('main pre')]"
        ".filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.textContent.slice(0, 60))"
    )
    found = {}
    for name in PAGES:
        page.goto(f"{site_url}/{name}")
        if hits := page.evaluate(wide):
            found[name] = hits
    page.close()
    assert found == {}


def test_lines_of_text_are_as_long_as_a_book_wants(browser: Any, site_url: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{site_url}/value.html")
    per_line = page.evaluate(
        "() => { const long = p => p.textContent.length > 400 && !p.querySelector('.katex');"
        " const ps = [...document.querySelectorAll('main p')].filter(long);"
        " return ps.map(p => { const r = document.createRange(); r.selectNodeContents(p);"
        " const lines = new Set([...r.getClientRects()].map(b => Math.round(b.bottom / 12))).size;"
        " return p.textContent.length / lines }) }"
    )
    page.close()
    assert per_line and all(50 <= n <= 90 for n in per_line), per_line


def test_search_finds_topological(browser: Any, site_url: str) -> None:
    page = browser.new_page()
    page.goto(f"{site_url}/index.html")
    page.locator("#quarto-search input").press_sequentially("topological", delay=20)
    hit = page.locator("#quarto-search a", has_text="topological").first
    hit.wait_for(timeout=5000)
    hit.click()
    page.wait_for_load_state()
    assert "value.html" in page.url
    page.close()


def test_sidebar_on_a_phone(browser: Any, site_url: str) -> None:
    context = browser.new_context(**VIEWS["phone"])
    page = context.new_page()
    page.goto(f"{site_url}/index.html")
    link = page.locator("#quarto-sidebar a", has_text="Reverse mode")
    assert not link.is_visible()
    page.locator(".quarto-btn-toggle").click()
    page.locator("#quarto-sidebar").get_by_text("One number at a time").click()
    link.wait_for(state="visible")
    link.click()
    page.wait_for_url("**/value.html")
    context.close()


def test_figures_with_large_letters_fit_a_phone(browser: Any, site_url: str) -> None:
    context = browser.new_context(**VIEWS["phone"])
    page = context.new_page()
    page.goto(f"{site_url}/loader.html")
    for name in ("fig-13b-workers", "fig-13b-augmented"):
        box = page.locator(f"#{name} svg").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    context.close()


def test_sidebar_shows_what_is_coming_without_a_link(browser: Any, site_url: str) -> None:
    page = browser.new_page()
    page.goto(f"{site_url}/value.html")
    assert page.locator("#quarto-sidebar .gb-coming", has_text="Precision").count() == 1
    assert page.locator("#quarto-sidebar a", has_text="Precision").count() == 0
    page.close()


def test_dark_mode_is_a_choice_that_stays(browser: Any, site_url: str) -> None:
    context = browser.new_context(color_scheme="light")
    page = context.new_page()
    page.goto(f"{site_url}/value.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator(".quarto-color-scheme-toggle").first.click()
    dark = page.evaluate(ground)
    assert dark != light
    page.wait_for_timeout(200)
    assert page.evaluate(ground) == dark
    page.goto(f"{site_url}/neural.html")
    assert page.evaluate(ground) == dark
    context.close()


def test_quiz_with_the_keyboard(browser: Any, site_url: str) -> None:
    page = browser.new_page()
    page.goto(f"{site_url}/value.html")
    quiz = page.locator(".gb-quiz").first
    quiz.locator("input[type=radio]").first.focus()
    page.keyboard.press("Space")
    assert quiz.locator(".gb-because:visible").count() >= 1
    page.close()


def test_previous_and_next(browser: Any, site_url: str) -> None:
    page = browser.new_page()
    page.goto(f"{site_url}/value.html")
    for target in ("dual.html", "neural.html"):
        assert page.locator(f'.page-navigation a[href="{target}"]').count() == 1
    page.close()


def test_quarto_is_used_where_it_is_installed(tmp_path: Path, monkeypatch: Any) -> None:
    "The official renderer comes first; here a stand-in shows how it is called."
    from tools import render

    stand_in = tmp_path / "quarto"
    stand_in.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\nmkdir -p {tmp_path}/site\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(render, "SITE", tmp_path / "site")
    monkeypatch.setattr("sys.argv", ["render"])
    render.main()
    assert (tmp_path / "said").read_text().split() == ["render", str(render.STAGE), "--no-execute"]
    assert list((tmp_path / "site" / "notebooks").glob("*.ipynb"))
