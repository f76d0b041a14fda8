"""The description of each metric in figures: its title, its unit, how to read it, and a caveat."""

from html import escape
from typing import NamedTuple

__all__ = ["VIEWS", "Description", "describe"]


class Description(NamedTuple):
    """The description of one metric.

    Attributes:
        title: title of a figure, as HTML.
        axis: label of an axis, with the unit.
        read: one sentence on how to read the metric.
        caveat: one sentence on what it does not mean.
        log: whether to draw it on a logarithmic axis.
        floor: the lower end of its axis, below which values are not drawn; ``None`` to draw all of them.
    """

    title: str
    axis: str
    read: str = ""
    caveat: str = ""
    log: bool = False
    floor: float | None = None


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
    "gain": Description("Information gain of each token", "nats"),
    "posterior_variance": Description("Posterior variance of each token", "share of its squared length"),
    "spectrum": Description("Eigenvalues of the covariance", "eigenvalue"),
    "lasso_picks": Description(
        "Lasso picks",
        "earlier tokens",
        "The number of earlier tokens from which the Lasso reproduces a token’s row. A low number means that few are enough.",
        "The rows from which a row can be reproduced need not be those from which the model computed it.",
    ),
    "lasso_r2": Description(
        "Lasso R²",
        "share of the row",
        "How much of a token’s row the Lasso reproduces from earlier rows: 1 is all of it, 0 is nothing.",
        "It is not the quality of a prediction: a row that earlier rows reproduce well can still belong to a surprising token.",
    ),
    "lasso_attention_rank": Description(
        "Rank correlation of Lasso and attention",
        "Spearman’s ρ",
        "Rank correlation of Lasso and attention weights over all earlier tokens: 1 means the same order, 0 no relation.",
        "Large weights do not dominate it: each of the many small weights counts as much.",
    ),
    "eq5_r2": Description(
        "R² of Eq. 5",
        "R²",
        "How well the coefficients that Eq. 5 derives from attention reproduce a row, without the equation’s first term (the "
        "token’s own value vector): 1 means exactly.",
        "A value below 0 is not an error: tokens that hardly attend to themselves imply very large coefficients.",
        floor=-1.0,
    ),
    "attention_entropy": Description(
        "Attention entropy",
        "nats",
        "How widely heads spread their attention: 0 if all of it is on one token, log n if it is spread evenly over n tokens.",
        "It is not comparable between texts of different length: it grows with the number of visible tokens.",
    ),
    "attention_sink": Description(
        "Attention sink",
        "weight on the first token",
        "The share of attention on the first token of a text.",
        "A high value does not mean that the first token matters: heads often attend to it when they contribute nothing.",
    ),
    "text_entropy": Description(
        "Entropy of single texts",
        "share of its maximum",
        "The representation entropy of each text’s own rows, averaged over texts: how widely the rows of one text spread.",
        "It is not comparable between texts of different length, because few rows cannot fill many directions.",
    ),
    "text_matrix_entropy": Description(
        "Matrix entropy of single texts",
        "nats",
        "The matrix entropy of each text’s own rows, averaged over texts: a low value means that the rows of a text lie in few "
        "directions.",
        "It is not the prompt entropy of Skean et al. (2025), who subtract the mean row of each prompt first.",
    ),
    "centered_text_matrix_entropy": Description(
        "Prompt entropy",
        "nats",
        "The matrix entropy of each text’s own rows after their mean was subtracted, averaged over texts, as in Wei et al. "
        "(2024). It is nearest to the prompt entropy of Skean et al. (2025), whose code also clips negative cosines.",
        "It is not the uncertainty of the model about the prompt, and not comparable with rows that were not centred.",
    ),
    "diff_erank": Description(
        "Diff-eRank",
        "directions",
        "By how much training reduced the effective rank: that of the untrained model minus that of this checkpoint.",
        "It is not a score of the model: it depends on the texts, on their number and on the width.",
    ),
    "cka_first": Description(
        "CKA with the first checkpoint",
        "linear CKA",
        "How similar a layer is to itself at the first checkpoint, up to rotation and scale: 1 means the same geometry.",
        "It is not sensitive to directions of small variance: a few large ones dominate it.",
    ),
    "cka_previous": Description(
        "CKA with the previous checkpoint",
        "linear CKA",
        "How similar a layer is to itself at the previous checkpoint: low values show when the geometry changed.",
        "It is not a rate of change: the intervals between checkpoints differ.",
    ),
    "rankme": Description(
        "RankMe",
        "directions",
        "The exponential of the entropy of the normalised singular values: a smooth count of directions (Garrido et al. 2023).",
        "It is not the effective rank above, which is computed from squared singular values.",
    ),
    "alpha_req": Description(
        "α-ReQ",
        "exponent α",
        "How fast the eigenvalues decay, as k<sup>−α</sup>: for values far above 1 few directions dominate.",
        "It does not test whether the spectrum is a power law: any spectrum has an α.",
    ),
    "anisotropy": Description(
        "Anisotropy",
        "mean cosine",
        "The mean cosine of two different rows: 0 for rows spread evenly, 1 for rows that all point in the same direction.",
        "A high value does not mean collapse: an offset that all rows share is enough.",
    ),
    "router_load_entropy": Description(
        "Entropy of the load of experts",
        "share of log E",
        "How evenly tokens are divided among the experts of a layer: 1 if all get equally many, 0 if one gets all of them.",
        "It does not tell whether experts differ. With few tokens it is lower by chance.",
    ),
    "router_entropy": Description(
        "Entropy of the router",
        "share of log E",
        "How undecided the router is about a token, on average: 0 if it is certain, 1 if it prefers no expert to another.",
        "It says nothing about the load: a router that is certain about every token can still divide tokens evenly.",
    ),
    "router_dead_experts": Description(
        "Dead experts",
        "share of experts",
        "The share of experts that no token chose.",
        "If there are few tokens, some experts are left out by chance.",
    ),
    "router_largest_share": Description(
        "Largest load of an expert",
        "share of choices",
        "The share of all choices that fell on the busiest expert: 1/E if the load is even, at most 1/k.",
        "It is not comparable between models that choose different numbers of experts for a token.",
    ),
    "curvature": Description(
        "Curvature",
        "angle",
        "The mean angle between successive steps from token to token: a lower value means a straighter path.",
        "It depends on the scale of single dimensions: one very large dimension makes every path straighter.",
    ),
    "attention_entropy_normalised": Description("Attention entropy over log t", "share of its maximum"),
    "attention_top_logit": Description("Largest attention logit", "score before softmax"),
    "attention_top_logit_max_head": Description("Largest attention logit, head with the largest mean", "score before softmax"),
    "residual_growth": Description(
        "Growth of the residual stream",
        "nats per layer",
        "The mean logarithm of the length of a row after a layer, divided by its length before: 0 if lengths stay the same.",
        "It does not tell how much a layer changes a row: a row can be replaced by another one of the same length.",
    ),
    "activation_ratio": Description(
        "Largest activation",
        "times the median",
        "The largest activation divided by the median activation: high if a few activations are massive.",
        "It is not a defect of the model: massive activations act as biases for attention sinks.",
        log=True,
    ),
    "massive_activations": Description(
        "Massive activations",
        "count",
        "The number of massive activations as defined by Sun et al. (2024): very large, and far above the median.",
        "It is not the number of dimensions in use.",
    ),
}
VIEWS: dict[str, tuple[str, ...]] = {
    "Lasso and attention weights": (
        "lasso_picks",
        "lasso_r2",
        "lasso_attention_rank",
        "eq5_r2",
        "attention_entropy",
        "attention_sink",
    ),
    "Single texts": ("text_entropy", "text_matrix_entropy", "centered_text_matrix_entropy"),
    "Compared with other checkpoints": ("diff_erank", "cka_first", "cka_previous"),
    "Shape of the spectrum": ("rankme", "alpha_req", "anisotropy"),
    "Paths and activations": ("curvature", "residual_growth", "activation_ratio", "massive_activations"),
    "Mixtures of experts": ("router_load_entropy", "router_entropy", "router_dead_experts", "router_largest_share"),
}
"""The metrics that have a small figure at the end of the report, by the title of their group."""


_PREFIXES = {
    "last_": "last row of each text",
    "mean_": "mean row of each text",
    "raw_": "not scaled",
    "stream_centered_": "centred on all rows",
    "centered_": "centred on each text",
    "clipped_": "negative entries set to zero",
}
"""What the first words of a name say about the rows of a metric, in their order."""


def describe(metric: str) -> Description:
    """Return the description of a metric. A metric that differs from another one only in its rows has the description of that
    one, with its rows in the title. A metric without a description is described by its name."""
    if metric in _WORDS:
        return _WORDS[metric]
    name, about = metric, list[str]()
    for prefix, words in _PREFIXES.items():
        if name.startswith(prefix):
            name, about = name.removeprefix(prefix), [*about, words]
    if about and name in _WORDS:
        return _WORDS[name]._replace(title=f"{_WORDS[name].title} ({', '.join(about)})")
    return Description(escape(metric.replace("_", " ")), "")
