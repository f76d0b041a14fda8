"""``geomprobe bench precision``: errors of the ways to compute products, against float64 from the hidden states on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from geomprobe.bench.lasso import prose
from geomprobe.bench.overhead import bench_model
from geomprobe.capture.decoder import find_decoder
from geomprobe.capture.generation import Mode
from geomprobe.core import spectrum
from geomprobe.core.cholesky import factor_of_identity_plus, gains, log_pivots
from geomprobe.core.precision import Precision, precision
from geomprobe.core.rows import Rows
from geomprobe.core.symmetric import assemble, exact_panels
from geomprobe.models.loading import load
from geomprobe.probe import Probe, add_consumer

__all__ = ["bench_precision", "table"]

_SIGMA, _EPSILON = 0.01, 0.1
_BLOCK = 32
_COLUMNS = {
    "gain": "gain (nats)",
    "text_entropy": "text entropy",
    "entropy": "entropy",
    "effective_rank": "effective rank",
}


def bench_precision(
    model: str | None, *, batch: int = 2, length: int = 256, device: str | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """Return the largest errors over all sites, texts and tokens: of a token's information gain in nats, and relative errors of
    the entropy of a text, of the entropy of all rows and of their effective rank.

    The paths of Gram matrices are ``float64``, ``split`` (float32 parts, for the factor too), ``float32`` (the product alone)
    and ``float32 blocks`` (a float64 product, and a factor in float32 outside of diagonal blocks of 32). Those of covariances
    are ``float32`` and ``tf32``, which is emulated: operands are rounded to 10 bits after the point.

    Args:
        model: hub id or directory of a model, which reads English prose. Default: random weights and tokens.
        batch: number of texts.
        length: number of tokens of each.
        device: device of the model and of the products.
        dtype: dtype of the model.
    """
    if model is None:
        network: Any = bench_model("precision", model=None, device=device, dtype=dtype)
        ids = torch.randint(0, network.config.vocab_size, (batch, length), device=network.device)
    else:
        loaded = load(model, device=device, dtype=dtype)
        network, ids = loaded.model, prose(loaded, model, length, batch)
    decoder = find_decoder(network)
    errors = _Errors()
    probe = add_consumer(Probe(network, [], decoder=decoder, on_error="raise"), errors)
    with torch.no_grad(), probe:
        decoder.base(input_ids=ids, use_cache=False)
    shape = {"batch": batch, "length": length, "sites": len(probe.sites), "width": errors.width, "dtype": dtype}
    return {"errors": errors.largest, "shape": shape | {"device": str(ids.device)}}


class _Errors:
    """A consumer of the rows of a forward, which compares the paths."""

    def __init__(self) -> None:
        self.largest: dict[str, dict[str, float]] = {}
        self.width = 0

    def consume(self, mode: Mode, sites: Sequence[str], rows: Rows) -> Callable[[], object]:
        self.width = rows.width
        for hidden in rows.hidden:
            self._texts(hidden)
            self._stream(hidden.flatten(0, 1))
        return lambda: None

    def _texts(self, hidden: Tensor) -> None:
        unit, exact = Rows(hidden).unit(), Rows(hidden.double()).unit()
        length = hidden.shape[-2]
        scale = hidden.shape[-1] / (length * _EPSILON**2)
        true = exact @ exact.mT
        gain, nats = _log_pivots(true * _SIGMA**-2), _log_pivots(true * scale).sum(-1)
        for kind in ("float64", "split"):
            with precision(_precision(kind)):
                gram = assemble(exact_panels(unit))
                self._note(kind, "gain", log_pivots(gram * _SIGMA**-2)[0] - gain)
                self._note(kind, "text_entropy", log_pivots(gram * scale)[0].sum(-1) / nats - 1)
        gram = (unit.float() @ unit.float().mT).double()
        self._note("float32", "gain", _log_pivots(gram * _SIGMA**-2) - gain)
        self._note("float32", "text_entropy", _log_pivots(gram * scale).sum(-1) / nats - 1)
        gram = unit.double() @ unit.double().mT
        self._note("float32 blocks", "gain", _block_pivots(gram * _SIGMA**-2) - gain)
        self._note("float32 blocks", "text_entropy", _block_pivots(gram * scale).sum(-1) / nats - 1)

    def _stream(self, hidden: Tensor) -> None:
        rows, exact = Rows(hidden.unsqueeze(0)).unit()[0].float(), Rows(hidden.unsqueeze(0).double()).unit()[0]
        true = _of_stream(exact.mT @ exact, len(rows))
        short = _rounded(rows)
        for kind, product in (("float32", rows.mT @ rows), ("tf32", short.mT @ short)):
            for (name, value), expected in zip(_of_stream(product.double(), len(rows)).items(), true.values(), strict=True):
                self._note(kind, name, value / expected - 1)

    def _note(self, kind: str, name: str, error: Tensor) -> None:
        largest = float(error.abs().max())
        of_kind = self.largest.setdefault(kind, {})
        of_kind[name] = max(of_kind.get(name, 0.0), largest)


def _precision(kind: str) -> Precision:
    return "split" if kind == "split" else "float64"


def _log_pivots(matrix: Tensor) -> Tensor:
    return gains(factor_of_identity_plus(matrix)[0])


def _block_pivots(matrix: Tensor) -> Tensor:
    """The same with a factor in float32 outside of its diagonal blocks."""
    n = matrix.shape[-1]
    matrix = matrix + torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    factor = torch.zeros_like(matrix, dtype=torch.float32)
    pivots = []
    for i in range(0, n, _BLOCK):
        j = min(i + _BLOCK, n)
        column = matrix[..., i:, i:j] - (factor[..., i:, :i] @ factor[..., i:j, :i].mT).double()
        corner = torch.linalg.cholesky_ex(column[..., : j - i, :])[0]
        pivots.append(corner.diagonal(dim1=-2, dim2=-1).log())
        factor[..., i:, i:j] = torch.linalg.solve_triangular(corner.mT, column, upper=True, left=False).float()
    return torch.cat(pivots, dim=-1)


def _of_stream(outer: Tensor, n: int) -> dict[str, Tensor]:
    values = torch.linalg.eigvalsh(outer / n)
    entropy = spectrum.rate_distortion_entropy(values, float(n), _EPSILON)
    return {"entropy": entropy, "effective_rank": spectrum.effective_rank(values)}


def _rounded(rows: Tensor) -> Tensor:
    """Float32 numbers rounded to the 10 bits after the point that TF32 has."""
    bits = rows.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def table(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{'largest error':<18}" + "".join(f"{title:>15}" for title in _COLUMNS.values())]
    for kind, errors in results["errors"].items():
        cells = (f"{errors[name]:.1e}" if name in errors else "–" for name in _COLUMNS)
        lines.append(f"{kind:<18}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)
