"""The page of one text inside a notebook."""

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING

from geomprobe.errors import GeomprobeError, is_whole
from geomprobe.files import write_whole
from geomprobe.inspection.inspect import inspect_text
from geomprobe.models.loading import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TokenView", "show_tokens"]


class TokenView:
    """The page of one text, which a notebook shows as the result of a cell.

    The page is shown in a frame in which its script can run, but cannot access the notebook.

    Args:
        document: the page, as HTML.
        height: height of the frame in pixels.
    """

    def __init__(self, document: str, height: int) -> None:
        self._document = document
        self._height = height

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, which a browser opens.

        Raises:
            GeomprobeError: if the file cannot be written.
        """
        write_whole(Path(path), self._document)

    def _repr_html_(self) -> str:
        """Return the frame with the page."""
        style = f"width:100%;height:{self._height}px;border:0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(self._document)}"></iframe>'

    def __repr__(self) -> str:
        return "<TokenView: show it as the last line of a notebook cell, or .save('page.html') and open that in a browser>"


def show_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", text: str, *, height: int = 760) -> TokenView:
    """Run ``text`` through ``model`` and return the page of its tokens, as the result of a notebook cell.

    For every layer, the page shows the information gain of each token, and its weights on the earlier tokens in a Lasso
    regression, in a ridge regression and in attention. ``geomprobe inspect --html`` writes the same page. The model runs once
    or twice without gradients, and is not changed.

    Args:
        model: a causal language model of Transformers in evaluation mode.
        tokenizer: its tokenizer.
        text: the text.
        height: height of the page in pixels.

    Raises:
        GeomprobeError: if the model is in training mode, in which dropout would change the numbers; if a probe is attached to
            it; or if the text is empty or longer than the model accepts.
    """
    if not is_whole(height, least=100):
        raise GeomprobeError(f"show_tokens(height={height!r}): expected a number of pixels of at least 100")
    if not hasattr(model, "config") or not hasattr(model, "modules"):
        raise GeomprobeError(f"show_tokens({type(model).__name__}, …): expected a model of Transformers")
    if not callable(getattr(tokenizer, "decode", None)):
        raise GeomprobeError(f"show_tokens(…, {type(tokenizer).__name__}, …): expected the tokenizer of the model")
    if any(module.training for module in model.modules()):
        raise GeomprobeError("show_tokens: the model is in training mode, where dropout changes the numbers: call model.eval()")
    inspection = inspect_text(Loaded(model, tokenizer), text, all_sites=True)
    return TokenView(inspection.to_html(), height)
