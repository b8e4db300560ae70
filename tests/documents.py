"""Code in Markdown pages: found, executed as a reader would, its output held against the page's.

```python blocks of a page are executed in order and share their names. A ```text block directly
after one is what it prints. Code of other packages stands in ```py blocks, which are not executed.
"""

import contextlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text, language):
    return [match[2] for match in _BLOCK.finditer(text) if match[1] == language]


@dataclass
class Snippet:
    line: int
    code: str
    shown: str | None  # what the page says it prints, None: nothing is shown


def snippets(text):
    found = list(_BLOCK.finditer(text))
    for match, after in zip(found, [*found[1:], None], strict=False):  # a text may have none
        if match[1] != "python":
            continue
        shown = None
        if after and after[1] == "text" and not text[match.end() : after.start()].strip():
            shown = after[2]
        yield Snippet(text[: match.start()].count("\n") + 2, match[2], shown)


def execute(name, folder):
    """Yield (snippet, what it printed) for each Python block of a page, run in `folder`."""
    if "keras" in sys.modules:
        import keras

        keras.utils.clear_session()  # layers are named as in a fresh process
    names = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        for snippet in snippets(page(name)):
            # Blank lines before it: a traceback names the line of the page.
            code = compile("\n" * (snippet.line - 1) + snippet.code, name, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, names)
            yield snippet, printed.getvalue()
