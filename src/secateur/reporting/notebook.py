"""The notebook of a sweep or of Runs: commented cells that hold the data, run for real, outputs kept."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.reporting.document import header_lines
from secateur.reporting.files import write_text
from secateur.reporting.story import Story, story

SECONDS = 180  # for all cells; a kernel that does not answer is given up
# The cells of each kind of records, cut at "# %%".
CELLS = {"point": "notebook_sweep.txt", "run": "notebook_run.txt"}


def write_notebook(
    records: Sequence[dict[str, Any]],
    path: str | Path,
    header: Mapping[str, str] | None = None,
    max_drop: float = 0.5,
) -> Path:
    """Write an executed notebook of a sweep's points, or of Runs; it needs nothing beside it.

    header: lines at the top, as in a document. Raises SecateurError when a package of the extra
    `report` is missing, a cell fails or the file cannot be written.
    """
    return write_text(
        path, notebook_text(story(records, max_drop, pictures=False), header, max_drop)
    )


def notebook_text(
    told: Story, header: Mapping[str, str] | None = None, max_drop: float = 0.5
) -> str:
    """Return the executed notebook of a story as JSON text; the same story, the same text."""
    try:
        import nbformat
        from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
    except ImportError:
        raise SecateurError(_missing("nbformat")) from None
    cells = []
    for kind, text in sources(told, header, max_drop):
        cell = new_code_cell(text) if kind == "code" else new_markdown_cell(text)
        cell["id"] = f"cell-{len(cells)}"
        cells.append(cell)
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python",
    }  # fmt: skip
    _execute(notebook)
    return nbformat.writes(notebook) + "\n"


def sources(
    told: Story, header: Mapping[str, str] | None = None, max_drop: float = 0.5
) -> list[tuple[str, str]]:
    """Return the cells before they are run, as ("markdown" or "code", text)."""
    top = [f"# {told.title}", ""]
    if header is not None:
        top += [f"**{name}:** {text}  " for name, text in header_lines(header)] + [""]
    cells = [("markdown", "\n".join([*top, told.lead]))]
    cells += [
        (
            "markdown",
            "\n".join([f"## How it was measured: {part.title}", "", *_bullets(part.method)]),
        )
        for part in told.parts
    ]
    cells += _split(_template(CELLS[told.kind]), told.data, max_drop)
    for part in told.parts:
        cells.append(("markdown", _words(told, part)))
    return cells


def _words(told: Story, part: Any) -> str:
    told_from = (
        "These sentences were computed from the full records, which also say which test images each "
        "network got right; intervals are 95 %, paired by seed and image."
    )
    lines = [f"## {part.heading}: {part.title}", "", *_bullets(part.findings)]
    if told.kind == "point":
        lines += ["", told_from]
    if part.missing:
        lines += ["", "Without figures:", "", *_bullets(part.missing)]
    return "\n".join(lines)


def _split(text: str, data: str, max_drop: float) -> list[tuple[str, str]]:
    """Cut a template at its `# %%` lines; a comment cell is markdown, and the data go into theirs."""
    cells = []
    for piece in text.split("# %%")[1:]:
        first, _, body = piece.partition("\n")
        if first.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            cells.append(("markdown", "\n".join(lines)))
            continue
        body = body.strip()
        literal = data.strip().replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
        body = body.replace("@DATA@", literal)
        cells.append(("code", body.replace("@MAX_DROP@", repr(float(max_drop)))))
    return cells


def _bullets(lines: Sequence[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _template(name: str) -> str:
    return (resources.files("secateur.reporting") / "templates" / name).read_text(encoding="utf-8")


def _execute(notebook: Any) -> None:
    """Run the cells in a kernel of this very Python, whatever kernels the user has installed."""
    try:
        import ipykernel  # noqa: F401 - the kernel's own process imports it
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
        from traitlets.config import Config
    except ImportError as error:
        raise SecateurError(_missing(str(error.name))) from None

    class OwnPython(AsyncKernelManager):
        """Starts the interpreter that writes the report, not the one that "python3" may name."""

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher"]
            return KernelSpec(
                argv=[*command, "-f", "{connection_file}"],
                display_name="Python 3",
                language="python",
                # figures go into the notebook, whatever the environment says
                env={"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
            )

    sockets = {} if os.name == "nt" else {"KernelManager": {"transport": "ipc"}}
    client = NotebookClient(
        notebook,
        kernel_manager_class=OwnPython,
        timeout=SECONDS,
        record_timing=False,
        config=Config(sockets),
    )
    try:
        _outside_the_main_thread(
            # What a cell writes on stderr is kept as its output.
            lambda: asyncio.run(client.async_execute(stderr=subprocess.DEVNULL))
        )
    except CellExecutionError as error:
        raise SecateurError(
            f"a cell of the notebook failed ({error.ename}: {error.evalue}); expected every cell to "
            "run; fix: pip install 'secateur[report]', whose Matplotlib and SciPy the cells use"
        ) from None
    except (RuntimeError, TimeoutError) as error:
        raise SecateurError(
            f"the notebook's kernel stopped ({error}); expected it to run every cell; fix: free "
            "memory, or write the report without a notebook"
        ) from None


def _outside_the_main_thread(work: Callable[[], Any]) -> None:
    """In the main one nbclient takes Ctrl-C for itself, and resets its handler when it is done."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _missing(name: str) -> str:
    return f"notebooks need {name}: pip install 'secateur[report]'"
