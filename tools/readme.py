"""Write README.md from nbs/index.ipynb, or with `--check` say whether it is in sync.

The landing page is the README's source: its Markdown, its example with the output, and its picture
as a file.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from tools.notebook import load, source

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "nbs" / "picture.svg"


def picture(markup: str) -> str:
    "The landing page's figure as a file: fixed colours on paper, for pages without our styles."
    svg = re.search(r"<svg.*?</svg>", markup, re.S)
    assert svg, "the landing page has a picture"
    text = re.sub(r"var\(--[\w-]+,\s*((?:[^()]|\([^()]*\))*)\)", r"\1", svg[0])
    text = re.sub(r"var\(--[\w-]+,\s*(#\w+)\)", r"\1", text).replace("currentColor", "#1c2330")
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box
    x, y, w, h = box[1].split()
    paper = f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="#fdfcf9"/>'
    head, body = text.split(">", 1)
    if "xmlns=" not in head:
        head += ' xmlns="http://www.w3.org/2000/svg"'
    return f'{head} font-family="sans-serif">{paper}{body}\n'


def parts() -> str:
    "The map of the book as a list."
    contents = yaml.safe_load((ROOT / "nbs" / "contents.yml").read_text(encoding="utf-8"))
    written = {p.stem for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    rows = []
    for part in contents:
        names = [f"**{t}**" if s in written else t for s, t in part["chapters"].items()]
        rows.append(f"- **{part['part']}.** {part['about']} ({', '.join(names)})")
    return "\n".join(rows) + "\n\nChapters in bold are written."


def relinked(text: str) -> str:
    "Links to pages of the site, as links to their notebooks."

    def notebook(m: re.Match[str]) -> str:
        found = next((ROOT / "nbs").glob(f"[0-9]*_{m[1]}.ipynb"), None)
        assert found, f"the landing page links to {m[1]}.html, which no notebook makes"
        return f"](nbs/{found.name})"

    return re.sub(r"\]\((\w+)\.html\)", notebook, text)


def output_text(output: dict[str, Any]) -> str:
    if output.get("output_type") == "stream":
        return "```\n" + "".join(output["text"]).rstrip() + "\n```"
    data = output.get("data", {})
    if "text/markdown" in data:
        return relinked("".join(data["text/markdown"]))
    return "```\n" + "".join(data.get("text/plain", "")).rstrip() + "\n```"


def readme() -> tuple[str, str]:
    "The text of README.md, and its picture."
    blocks = ["<!-- Written by `python -m tools.readme` from nbs/index.ipynb: edit that. -->"]
    drawing = ""
    for cell in load(ROOT / "nbs" / "index.ipynb")["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\{\.[\w-]+\}", "", text.replace("<!-- map -->", parts()))
            text = relinked(text).replace("@fig-one-neuron", "The picture")
            blocks.append(re.sub(r"^:::.*\n?", "", text, flags=re.M))
            continue
        if not re.search(r"^#\|\s*(echo:\s*false|code-fold)", text, re.M):
            blocks.append("```python\n" + re.sub(r"^#\|.*\n", "", text, flags=re.M) + "\n```")
        for output in cell["outputs"]:
            markup = "".join(output.get("data", {}).get("text/html", ""))
            if "<svg" in markup:
                drawing = picture(markup)
                caption = re.sub(r"<[^>]+>", "", markup.split("<figcaption>")[-1]).strip()
                blocks.append(f"![{caption}](nbs/{PICTURE.name})\n\n*{caption}*")
            else:
                blocks.append(output_text(output))
    return "\n\n".join(b.strip() for b in blocks) + "\n", drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="fail if README.md is not what it would write"
    )
    args = parser.parse_args()
    for path, text in zip((ROOT / "README.md", PICTURE), readme(), strict=True):
        stale = not path.exists() or path.read_text(encoding="utf-8") != text
        if args.check and stale:
            raise SystemExit(
                f"{path.name} is not what nbs/index.ipynb says: run `python -m tools.readme`"
            )
        if stale:
            path.write_text(text, encoding="utf-8")
    print("README.md in sync with nbs/index.ipynb")


if __name__ == "__main__":
    main()
