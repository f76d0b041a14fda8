"""Hides what the libraries that load models print, for commands. A user's own program keeps their messages."""

import logging
import os

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Hide the progress bars and warnings of loading. A command calls this once, before it loads a model.

    Bars of downloads remain, because they may take long. ``TRANSFORMERS_VERBOSITY=warning`` shows the warnings of Transformers.
    """
    for name in ("torchao", "torch.utils._pytree"):  # binaries for other devices that could not be loaded, and deprecations
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers.modeling_gguf_pytorch_utils as gguf
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as told

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        told.set_verbosity_error()
    disabled = are_progress_bars_disabled()
    told.disable_progress_bar()
    if not disabled:
        enable_progress_bars()
    if hasattr(gguf, "tqdm"):  # the bar of reading GGUF is not among those that Transformers can disable
        gguf.tqdm = told.tqdm
