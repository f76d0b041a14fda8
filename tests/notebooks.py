"""``python -m tests.notebooks``: runs the notebooks of ``examples/``, and stores their outputs in the files.

The cells run in one namespace, in order, without Jupyter or a kernel. An output is what a cell prints, the value of its last
line (as HTML, if the value has it), and the figures of matplotlib that are open at its end.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geomprobe.files import write_whole

__all__ = ["NOTEBOOKS", "execute", "source"]

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))


def source(cell: dict[str, Any]) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook with the outputs of its cells, after running them in an empty folder.

    An exception of a cell is raised.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), _drawing_to_files():
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                cell = cell | {"execution_count": count, "outputs": list(_outputs(source(cell), names, count))}
            cells.append(cell)
    return notebook | {"cells": cells}


def _outputs(code: str, names: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """Run one cell, and return its outputs in the format of Jupyter."""
    printed = io.StringIO()
    body, last, value = ast.parse(code).body, None, None
    if body and isinstance(end := body[-1], ast.Expr) and not code.rstrip().endswith(";"):
        body, last = body[:-1], ast.Expression(end.value)
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"<cell {count}>", "exec"), names)
        if last is not None:
            value = eval(compile(last, f"<cell {count}>", "eval"), names)
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)}
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        if html := getattr(value, "_repr_html_", lambda: None)():
            data["text/html"] = html.splitlines(keepends=True)
        yield {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}
    for picture in _pictures():
        yield {"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}}


@contextlib.contextmanager
def _drawing_to_files() -> Iterator[None]:
    """Draw without a screen, and close all figures at the end."""
    import matplotlib.pyplot as plt

    before = plt.get_backend()
    plt.switch_backend("agg")
    plt.close("all")
    try:
        yield
    finally:
        plt.close("all")
        plt.switch_backend(before)


def _pictures() -> list[str]:
    """The open figures as PNG in base 64; they are closed."""
    import matplotlib.pyplot as plt

    pictures = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
        pictures.append(base64.b64encode(file.getvalue()).decode())
        plt.close(number)
    return pictures


def main() -> int:
    """Run every notebook, and store its outputs."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    for path in NOTEBOOKS:
        notebook = execute(json.loads(path.read_text("utf-8")))
        write_whole(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
