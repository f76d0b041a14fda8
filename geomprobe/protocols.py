"""Published protocols: the arguments with which a probe computes the numbers of other papers.

A protocol is a set of metrics with the arguments of a paper. ``geomprobe sweep --protocol NAME`` measures them on every
checkpoint; in Python, give their ``metrics`` to a probe. What is known to differ from a paper, or from the code of its
authors, is part of each protocol.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from geomprobe.errors import GeomprobeError
from geomprobe.metrics.attention import AttentionProfile
from geomprobe.metrics.base import Metric
from geomprobe.metrics.entropy import RepresentationEntropy

__all__ = ["PROTOCOLS", "Protocol", "find_protocol"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The numbers of a published paper.

    Attributes:
        name: name of the protocol, such as ``"three-phases"``.
        title: what is measured.
        source: the paper.
        metrics: the metrics with the paper's arguments.
        shown: the names of the numbers that the paper reports.
        texts: which texts the paper reads, in words.
        differs: what is known to differ from the paper or from the code of its authors.
    """

    name: str
    title: str
    source: str
    metrics: tuple[Metric, ...]
    shown: tuple[str, ...]
    texts: str
    differs: str


_ALL = (
    Protocol(
        name="three-phases",
        title="RankMe and α-ReQ of the last tokens",
        source="Li et al. 2025, arXiv:2509.23024",
        metrics=(RepresentationEntropy(center="stream", unit=False, rows="last", alpha_range=(12, 100)),),
        shown=("last_raw_stream_centered_effective_rank", "last_raw_stream_centered_alpha_req"),
        texts="one row for each text, its last token; texts cut to one length (`--truncate --length N`)",
        differs="Their RankMe is e^H of the eigenvalues of the covariance, which is the effective rank here. Their code "
        "fits α from rank 12, because it counts ranks from zero; the package of other authors fits from rank 11 "
        "(`alpha_range=(11, 100)`).",
    ),
    Protocol(
        name="matrix-entropy",
        title="Matrix entropy and Diff-eRank",
        source="Wei et al. 2024, arXiv:2401.17139",
        metrics=(RepresentationEntropy(center="text", text_spectrum=True),),
        shown=("centered_text_matrix_entropy", "centered_text_matrix_entropy_log_d", "centered_text_effective_rank"),
        texts="each text alone, mean over texts",
        differs="The numbers are the same if their code computes in float64. A sweep also gives Diff-eRank, the "
        "effective rank of the untrained model minus that of the checkpoint (`diff_erank` at `final_norm`).",
    ),
    Protocol(
        name="prompt-entropy",
        title="Prompt entropy",
        source="Skean et al. 2025, arXiv:2502.02013",
        metrics=(RepresentationEntropy(center="text", text_spectrum=True, clipped=True),),
        shown=("centered_clipped_text_matrix_entropy", "centered_text_matrix_entropy"),
        texts="each text alone, mean over texts",
        differs="Their code sets negative entries of the Gram matrix to zero, which the paper does not mention: "
        "`centered_clipped_text_matrix_entropy` does the same, `centered_text_matrix_entropy` does not.",
    ),
    Protocol(
        name="dataset-entropy",
        title="Dataset entropy",
        source="Skean et al. 2025, arXiv:2502.02013",
        metrics=(RepresentationEntropy(center="text", rows="mean", clipped=True),),
        shown=("mean_centered_clipped_matrix_entropy", "mean_centered_matrix_entropy"),
        texts="one row for each text, the mean of its centred unit rows; more texts than dimensions",
        differs="Their code clips as for the prompt entropy. With fewer texts than dimensions, it clips the Gram matrix "
        "of the texts, which is not a sum over texts, and the clipped number here differs from theirs.",
    ),
    Protocol(
        name="rankme",
        title="RankMe",
        source="Garrido et al. 2023, arXiv:2210.02885",
        metrics=(RepresentationEntropy(unit=False, texts=False), RepresentationEntropy(unit=False, rows="last")),
        shown=("raw_rankme", "last_raw_rankme"),
        texts="rows without centring or scaling; the paper has one row for each image",
        differs="They add 1e-7 to the share of every singular value. Here, singular values below rounding errors are "
        "left out, and `raw_rankme_left_out` is the largest share that may be missing for this reason.",
    ),
    Protocol(
        name="attention-sink",
        title="Share of attention sinks",
        source="Gu et al. 2024, arXiv:2410.10781",
        metrics=(AttentionProfile(sink_tokens=2),),
        shown=("attention_sink_share_1", "attention_sink_share_2"),
        texts="texts cut to 64 tokens (`--truncate --length 64`)",
        differs="They also average over the layers. To do the same, take the mean over the sites `layer_00` … of a reading.",
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""All protocols by name."""


def find_protocol(name: str) -> Protocol:
    """Return the protocol of a name.

    >>> find_protocol("three-phases").source
    'Li et al. 2025, arXiv:2509.23024'

    Raises:
        GeomprobeError: if there is none.
    """
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise GeomprobeError(f"there is no protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
