"""What the report says of each number: its name, its unit, how to read it, and what it is not."""

from typing import NamedTuple

__all__ = ["COMPACT", "Description", "describe"]


class Description(NamedTuple):
    """Of one metric.

    Attributes:
        title: over a figure.
        axis: along an axis, with the unit.
        read: one sentence, how to read it.
        caveat: one sentence, what it is not.
        log: whether it spans so much that a log axis shows it better.
    """

    title: str
    axis: str
    read: str = ""
    caveat: str = ""
    log: bool = False


_WORDS = {
    "loss": Description("Loss", "nats per token"),
    "entropy": Description("Representation entropy", "share of its maximum"),
    "entropy_nats": Description("Representation entropy", "nats"),
    "matrix_entropy": Description("Matrix entropy", "nats"),
    "matrix_entropy_log_d": Description("Matrix entropy over log d", "H / log d"),
    "matrix_entropy_log_n": Description("Matrix entropy over log min(n, d)", "H / log min(n, d)"),
    "effective_rank": Description("Effective rank", "directions"),
    "rank_ratio": Description("Effective rank over d", "share of d"),
    "stable_rank": Description("Stable rank", "directions"),
    "participation_ratio": Description("Participation ratio", "directions"),
    "information_gain": Description("Information gain", "nats per text"),
    "information_gain_per_dim": Description("Information gain per dimension", "nats per text and dimension"),
    "gain_per_token": Description("Gain per token", "nats"),
    "lasso_picks": Description(
        "Lasso picks",
        "earlier tokens",
        "How many earlier tokens the Lasso needs to rebuild a token’s row: fewer means sparser structure.",
        "Which rows a row can be written by is not which ones the model computed it from.",
    ),
    "lasso_r2": Description(
        "Lasso R²",
        "share of the row",
        "How much of a token’s row its picked earlier rows rebuild: 1 is all of it, 0 nothing.",
        "It is not the quality of a prediction: a row that the past rebuilds well can still carry a surprising token.",
    ),
    "lasso_attention_rank": Description(
        "Lasso and attention, ranked",
        "Spearman’s ρ",
        "Rank correlation of Lasso weights and attention weights over all earlier tokens: 1 is the same order, 0 none.",
        "It is not about the largest weights alone: long tails of small ones weigh as much.",
    ),
    "eq5_r2": Description(
        "R² of Eq. 5",
        "R²",
        "How well the coefficients that attention implies rebuild a row: 1 is exactly.",
        "It is not all of Eq. 5: the first term, a token’s own value vector, is left out. Below 0 is no error: tokens that "
        "hardly attend to themselves imply huge coefficients.",
    ),
    "attention_entropy": Description(
        "Attention entropy",
        "nats",
        "How widely heads spread their attention: 0 is on one token, log n evenly on n.",
        "It is not comparable between text lengths: it grows with how much there is to see.",
    ),
    "attention_sink": Description(
        "Attention sink",
        "weight on the first token",
        "The share of attention that goes to a text’s first token.",
        "A sink is not a sign that the first token matters: heads with nothing to do look there.",
    ),
    "text_entropy": Description(
        "Entropy of single texts",
        "share of its maximum",
        "Each text’s own representation entropy, averaged: how widely the rows of one text spread.",
        "It is not comparable between text lengths, as few rows cannot fill many directions.",
    ),
    "text_matrix_entropy": Description(
        "Prompt entropy",
        "nats",
        "Matrix entropy of each text’s own rows, averaged: low means a text is squeezed into few directions.",
        "It is not the uncertainty of the model about the prompt.",
    ),
    "centered_text_matrix_entropy": Description(
        "Prompt entropy, centred",
        "nats",
        "The same after each text’s mean row is taken away, as Wei et al. have it.",
        "It is not comparable with the entropy of rows that were not centred.",
    ),
    "diff_erank": Description(
        "Diff-eRank",
        "directions",
        "How many effective directions training took away: effective rank of the untrained model less that of this one.",
        "It is not a score of the model: it depends on the texts, their number and the width.",
    ),
    "cka_first": Description(
        "CKA with the first checkpoint",
        "linear CKA",
        "How alike a layer is to itself at the first checkpoint, up to rotation and scale: 1 is the same geometry.",
        "It is not sensitive to small directions: a few large ones decide it.",
    ),
    "cka_previous": Description(
        "CKA with the checkpoint before",
        "linear CKA",
        "How alike a layer is to itself one checkpoint earlier: dips show when the geometry moved.",
        "It is not a speed: checkpoints lie unequally far apart.",
    ),
    "rankme": Description(
        "RankMe",
        "directions",
        "e to the entropy of the normalised singular values: a smooth count of directions in use (Garrido et al. 2023).",
        "It is not the effective rank above, which weighs squared singular values.",
    ),
    "alpha_req": Description(
        "α-ReQ",
        "exponent α",
        "How fast the eigenvalues fall, as k<sup>−α</sup>: near 1 the spectrum is balanced, above it few directions dominate.",
        "It is not a test that the spectrum is a power law: any spectrum yields an α.",
    ),
    "anisotropy": Description(
        "Anisotropy",
        "mean cosine",
        "Mean cosine of two different rows: 0 is spread evenly, 1 all one way.",
        "High is not collapse: one offset that all rows share is enough.",
    ),
    "curvature": Description(
        "Curvature",
        "angle",
        "The mean angle by which a text’s path turns from token to token: lower is straighter.",
        "It is not invariant to scale of single dimensions: a massive one straightens every path.",
    ),
    "activation_ratio": Description(
        "Largest activation",
        "times the median",
        "The largest activation over the median one: high where a few dimensions are massive.",
        "It is not a fault of the model: massive activations act as biases for attention sinks.",
        log=True,
    ),
    "massive_activations": Description(
        "Massive activations",
        "count",
        "How many activations are massive by Sun et al.’s (2024) rule: very large, and far above the median.",
        "It is not a count of dimensions in use.",
    ),
}
COMPACT = tuple(name for name, about in _WORDS.items() if about.read)
"""The metrics that have a small figure of their own."""


def describe(metric: str) -> Description:
    """Of a metric; one that the report does not know is called by its name."""
    return _WORDS.get(metric, Description(metric.replace("_", " "), ""))
