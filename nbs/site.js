// Small things the pages need: maths in quiz texts, and a scroll box of its own for what is wider than a phone.
document.addEventListener("DOMContentLoaded", () => {
  const inline = /^\\\((.*)\\\)$/s;
  for (const span of document.querySelectorAll(".gb-quiz .math")) {
    const tex = span.textContent.trim();
    if (window.katex && !span.querySelector(".katex"))
      window.katex.render(inline.test(tex) ? tex.match(inline)[1] : tex, span, { throwOnError: false });
  }
  for (const wide of document.querySelectorAll("main table, main .gb-figure > svg")) {
    const box = document.createElement("div");
    box.className = "gb-scroll";
    wide.replaceWith(box);
    box.append(wide);
    if (box.scrollWidth <= box.clientWidth) continue;
    box.tabIndex = 0; // so that the arrow keys scroll it
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `${wide.tagName === "TABLE" ? "table" : "figure"}, scrolls sideways`);
  }
});
