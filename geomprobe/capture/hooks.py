"""The hooks: a frame opened before the decoder runs, a call per site while it runs, a close whatever happens."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomprobe.capture.anatomy import Anatomy
from geomprobe.capture.frame import Frame, read_frame

__all__ = ["Capture", "Listener"]


class Listener(Protocol):
    """What a capture reports to. Exceptions that these raise go through the model's forward to its caller."""

    def wants(self, base: nn.Module) -> bool:
        """Whether the forward that is about to run is to be captured. Called once per forward."""
        ...

    def opened(self, read: Callable[[], Frame]) -> Frame | None:
        """Read the frame of a wanted forward; ``None`` to let it pass."""
        ...

    def captured(self, frame: Frame, site: str, hidden: Tensor) -> None:
        """One site's hidden states ``(batch, length, width)``, while the forward runs."""
        ...

    def closed(self, frame: Frame | None, completed: bool) -> None:
        """The decoder returned (``completed``) or raised; called for every forward, ``frame`` only for captured ones."""
        ...


class Capture:
    """Hooks on one decoder. Attached once, detached once; nothing but the hooks is put on the model.

    A frame is open only between the decoder's call and its return. That drops the replays of activation checkpointing, which
    run layers again during backward, and it is why nothing here needs to know about checkpointing.
    """

    def __init__(self, anatomy: Anatomy, sites: tuple[str, ...], listener: Listener) -> None:
        self._anatomy = anatomy
        self._sites = sites
        self._listener = listener
        self._frame: Frame | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks. Each costs an off-step one attribute look-up."""
        base, layers = self._anatomy.base, self._anatomy.layers
        add = self._handles.append
        add(base.register_forward_pre_hook(self._open, with_kwargs=True))
        if "embed" in self._sites:
            add(layers[0].register_forward_pre_hook(self._before_layers, with_kwargs=True))
        for i, layer in enumerate(layers):
            if (site := f"layer_{i:02d}") in self._sites:
                add(layer.register_forward_hook(partial(self._after_layer, site)))
        add(base.register_forward_hook(self._close, always_call=True))

    def detach(self) -> None:
        """Remove every hook. Safe to call twice, and from inside a hook of a forward that did not raise."""
        self._frame = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _open(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._frame = None  # left open only by a BaseException (Ctrl-C), which always_call hooks do not see
        if self._listener.wants(base):
            self._frame = self._listener.opened(partial(read_frame, base, args, kwargs))

    def _before_layers(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._frame is not None:
            self._listener.captured(self._frame, "embed", args[0] if args else kwargs["hidden_states"])

    def _after_layer(self, site: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._frame is not None:
            self._listener.captured(self._frame, site, output if isinstance(output, Tensor) else output[0])

    def _close(self, base: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        frame, self._frame = self._frame, None
        completed = output is not None  # always_call: after an exception there is no output
        if frame is not None and completed and "final_norm" in self._sites:
            self._listener.captured(frame, "final_norm", output if isinstance(output, Tensor) else output[0])
        self._listener.closed(frame, completed)
