"""A report as one page that needs nothing else: styles and pictures inside, no script, no address."""

from __future__ import annotations

import html
import re

from corpora.common.blocks import Code, Notes, Picture, Section, Table, Text

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f8fa; --ink: #1b2027; --quiet: #5c6670; --rule: #d9dee3; --accent: #0b62a3;
  --warn-paper: #fff6e0; --warn-rule: #d99a00;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --raised: #1c2229; --ink: #e4e8ec; --quiet: #9aa5b0; --rule: #333c45; --accent: #6db6f2;
    --warn-paper: #2c2412; --warn-rule: #b98a1c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 66rem; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; }
p { margin: .6rem 0; max-width: 46rem; }
ul { margin: .6rem 0; padding-left: 1.2rem; max-width: 52rem; }
li { margin: .2rem 0; }
code { font-family: var(--mono); font-size: .88em; background: var(--raised); padding: .08em .3em; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: var(--raised); border: 1px solid var(--rule); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font: .82rem/1.5 var(--mono); margin: .8rem 0; }
.warnings { background: var(--warn-paper); border-left: 3px solid var(--warn-rule); border-radius: 0 6px 6px 0; padding: .5rem 1rem; margin: .9rem 0; max-width: 56rem; }
.warnings p { margin: .2rem 0; font-weight: 600; }
.warnings ul { margin: .2rem 0; }
.scroll { overflow-x: auto; width: fit-content; min-width: min(100%, 18rem); max-width: 100%; border: 1px solid var(--rule); border-radius: 6px; margin: .9rem 0; }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .8rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--rule); }
thead th { border-top: 0; background: var(--raised); color: var(--quiet); font-weight: 600; font-size: .84rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); font-weight: 500; }
thead th:first-child { background: var(--raised); }
table.words th, table.words td { text-align: left; }
table.words td { white-space: normal; }
td.strong { font-weight: 700; }
td.quiet { color: var(--quiet); font-style: italic; }
figure { margin: 1rem 0 1.4rem; }
figure .picture { overflow-x: auto; }
figure svg { display: block; width: var(--w); max-width: 100%; min-width: min(var(--w), 46rem); height: auto; }
figcaption { color: var(--quiet); font-size: .86rem; margin-top: .4rem; max-width: 50rem; }
details { margin: 2rem 0 0; border-top: 1px solid var(--rule); padding-top: .9rem; }
details + details { margin-top: .9rem; }
summary { cursor: pointer; font-size: 1.05rem; font-weight: 600; }
summary::marker { color: var(--accent); }
@media print { details { break-inside: avoid; } .scroll { overflow: visible; } }
"""


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def html_table(table: Table) -> str:
    """A table that scrolls sideways by itself, its first column in place."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.head)
    rows = []
    for first, *others in table.body:
        cells = [f'<th scope="row">{html.escape(first.text)}</th>']
        for entry in others:
            marks = " ".join(name for name, on in (("strong", entry.strong), ("quiet", entry.quiet)) if on)
            cells.append(
                f"<td{f' class={chr(34)}{marks}{chr(34)}' if marks else ''}>{html.escape(entry.text)}</td>"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    kind = ' class="words"' if table.words else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _block(block: Text | Notes | Code | Table | Picture) -> str:
    if isinstance(block, Text):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Notes):
        items = "".join(f"<li>{_text(note)}</li>" for note in block.notes)
        if not block.warning:
            return f"<ul>{items}</ul>"
        word = "Warning" if len(block.notes) == 1 else "Warnings"
        return f'<div class="warnings" role="note"><p>{word}</p><ul>{items}</ul></div>'
    if isinstance(block, Code):
        return f'<pre tabindex="0">{html.escape(block.text, quote=False)}</pre>'
    if isinstance(block, Table):
        return html_table(block)
    return f'<figure><div class="picture">{block.svg}</div><figcaption>{html.escape(block.caption)}</figcaption></figure>'


def page(title: str, sections: list[Section]) -> str:
    """The whole report as one HTML page that follows the reader's light or dark setting."""
    parts = []
    for section in sections:
        blocks = "\n".join(_block(block) for block in section.blocks)
        if section.folded:
            parts.append(f"<details><summary>{html.escape(section.title)}</summary>\n{blocks}\n</details>")
        else:
            parts.append(f"<section><h2>{html.escape(section.title)}</h2>\n{blocks}\n</section>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )
