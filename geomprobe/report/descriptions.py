"""What the report says of each number: its name, its unit, how to read it, and what it is not."""

from typing import NamedTuple

__all__ = ["COMPACT", "Words", "words"]


class Words(NamedTuple):
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
    "loss": Words("Loss", "nats per token"),
    "entropy": Words("Representation entropy", "share of its maximum"),
    "entropy_nats": Words("Representation entropy", "nats"),
    "matrix_entropy": Words("Matrix entropy", "nats"),
    "matrix_entropy_log_d": Words("Matrix entropy over log d", "H / log d"),
    "matrix_entropy_log_n": Words("Matrix entropy over log min(n, d)", "H / log min(n, d)"),
    "effective_rank": Words("Effective rank", "directions"),
    "rank_ratio": Words("Effective rank over d", "share of d"),
    "stable_rank": Words("Stable rank", "directions"),
    "participation_ratio": Words("Participation ratio", "directions"),
    "information_gain": Words("Information gain", "nats per text"),
    "information_gain_per_dim": Words("Information gain per dimension", "nats per text and dimension"),
    "gain_per_token": Words("Gain per token", "nats"),
    "lasso_picks": Words(
        "Lasso picks",
        "earlier tokens",
        "How many earlier tokens the Lasso needs to rebuild a token’s row: fewer means sparser structure.",
        "Which rows a row can be written by is not which ones the model computed it from.",
    ),
    "lasso_r2": Words(
        "Lasso R²",
        "share of the row",
        "How much of a token’s row its picked earlier rows rebuild: 1 is all of it, 0 nothing.",
        "It is not the quality of a prediction: a row that the past rebuilds well can still carry a surprising token.",
    ),
    "lasso_attention_rank": Words(
        "Lasso and attention, ranked",
        "Spearman’s ρ",
        "Rank correlation of Lasso weights and attention weights over all earlier tokens: 1 is the same order, 0 none.",
        "It is not about the largest weights alone: long tails of small ones weigh as much.",
    ),
    "eq5_r2": Words(
        "R² of Eq. 5",
        "R²",
        "How well the coefficients that attention implies rebuild a row: 1 is exactly.",
        "It is not all of Eq. 5: the first term, a token’s own value vector, is left out. Below 0 is no error: tokens that "
        "hardly attend to themselves imply huge coefficients.",
    ),
    "attention_entropy": Words(
        "Attention entropy",
        "nats",
        "How widely heads spread their attention: 0 is on one token, log n evenly on n.",
        "It is not comparable between text lengths: it grows with how much there is to see.",
    ),
    "attention_sink": Words(
        "Attention sink",
        "weight on the first token",
        "The share of attention that goes to a text’s first token.",
        "A sink is not a sign that the first token matters: heads with nothing to do look there.",
    ),
    "text_entropy": Words(
        "Entropy of single texts",
        "share of its maximum",
        "Each text’s own representation entropy, averaged: how widely the rows of one text spread.",
        "It is not comparable between text lengths, as few rows cannot fill many directions.",
    ),
    "text_matrix_entropy": Words(
        "Prompt entropy",
        "nats",
        "Matrix entropy of each text’s own rows, averaged: low means a text is squeezed into few directions.",
        "It is not the uncertainty of the model about the prompt.",
    ),
    "centered_text_matrix_entropy": Words(
        "Prompt entropy, centred",
        "nats",
        "The same after each text’s mean row is taken away, as Wei et al. have it.",
        "It is not comparable with the entropy of rows that were not centred.",
    ),
    "diff_erank": Words(
        "Diff-eRank",
        "directions",
        "How many effective directions training took away: effective rank of the untrained model less that of this one.",
        "It is not a score of the model: it depends on the texts, their number and the width.",
    ),
    "cka_first": Words(
        "CKA with the first checkpoint",
        "linear CKA",
        "How alike a layer is to itself at the first checkpoint, up to rotation and scale: 1 is the same geometry.",
        "It is not sensitive to small directions: a few large ones decide it.",
    ),
    "cka_previous": Words(
        "CKA with the checkpoint before",
        "linear CKA",
        "How alike a layer is to itself one checkpoint earlier: dips show when the geometry moved.",
        "It is not a speed: checkpoints lie unequally far apart.",
    ),
    "rankme": Words(
        "RankMe",
        "directions",
        "e to the entropy of the normalised singular values: a smooth count of directions in use (Garrido et al. 2023).",
        "It is not the effective rank above, which weighs squared singular values.",
    ),
    "alpha_req": Words(
        "α-ReQ",
        "exponent α",
        "How fast the eigenvalues fall, as k<sup>−α</sup>: near 1 the spectrum is balanced, above it few directions dominate.",
        "It is not a test that the spectrum is a power law: any spectrum yields an α.",
    ),
    "anisotropy": Words(
        "Anisotropy",
        "mean cosine",
        "Mean cosine of two different rows: 0 is spread evenly, 1 all one way.",
        "High is not collapse: one offset that all rows share is enough.",
    ),
    "curvature": Words(
        "Curvature",
        "angle",
        "The mean angle by which a text’s path turns from token to token: lower is straighter.",
        "It is not invariant to scale of single dimensions: a massive one straightens every path.",
    ),
    "activation_ratio": Words(
        "Largest activation",
        "times the median",
        "The largest activation over the median one: high where a few dimensions are massive.",
        "It is not a fault of the model: massive activations act as biases for attention sinks.",
        log=True,
    ),
    "massive_activations": Words(
        "Massive activations",
        "count",
        "How many activations are massive by Sun et al.’s (2024) rule: very large, and far above the median.",
        "It is not a count of dimensions in use.",
    ),
}
COMPACT = tuple(name for name, about in _WORDS.items() if about.read)
"""The metrics that have a small figure of their own."""


def words(metric: str) -> Words:
    """Of a metric; one that the report does not know is called by its name."""
    return _WORDS.get(metric, Words(metric.replace("_", " "), ""))
