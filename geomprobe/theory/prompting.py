"""What prompts and contexts do to conditional entropy (Defs 3.9, 3.12 and 3.13, Lemmas 3.10 and 3.14, Theorems 3.11 and 3.15),
on finite distributions of a text X and the skill Y. Entropies are in nats.

- A prompting function f is *perfect* if ``p(x | Y = y) = p(x | f(Y) = f(y))`` for all x and y (Def. 3.9). Then
  ``H(X | Y = y) = H(X | Ȳ = f(y))`` for every skill (Lemma 3.10), and ``H(X | Y) = H(X | Ȳ)`` (Theorem 3.11), with Ȳ = f(Y).
- A skill y is *irrelevant* to a context if ``p(x | context, Y = y) = p(x | Y = y)`` for all x (Def. 3.12). A context is *good*
  (*bad*) to a skill if ``H(X | context, Y = y)`` is below (above) ``H(X | Y = y)`` (Def. 3.13). If a skill is irrelevant, its
  entropy does not change (Lemma 3.14).
- Theorem 3.15 is about one fixed context. If every skill is irrelevant to it or the context is good (bad) to it, the context
  lowers (raises) the conditional entropy, the mean over skills under p_skill(y). It does so strictly if it is good (bad) to
  a skill of positive probability.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from geomprobe.errors import GeomprobeError
from geomprobe.theory.information import conditional_entropy, distribution, entropies_given

__all__ = ["context_change", "context_kind", "context_kinds", "is_perfect_prompt", "prompted_entropies", "prompted_entropy"]

Floats = NDArray[np.float64]


# -- prompts ----------------------------------------------------------------------------------------------------------------


def is_perfect_prompt(joint: ArrayLike, prompt: ArrayLike, *, tolerance: float = 1e-12) -> bool:
    """Return whether ``p(x | Y = y) = p(x | f(Y) = f(y))`` for all x and y, to within ``tolerance`` (Def. 3.9).

    Skills that never occur have no ``p(x | Y = y)`` and do not count.

    Args:
        joint: p(x, y), ``(texts, skills)``.
        prompt: the prompt f(y) of each skill as a number, ``(skills,)``.
        tolerance: largest difference of two probabilities that count as equal.

    Raises:
        GeomprobeError: if ``joint`` is not a joint distribution of two variables, or there is not one prompt for each skill.
    """
    p, prompted, place = _prompted(joint, prompt)
    used = p.sum(0) > 0
    of_skill, of_prompt = p[:, used] / p[:, used].sum(0), prompted[:, place[used]]
    return bool((np.abs(of_skill - of_prompt / of_prompt.sum(0)) <= tolerance).all())


def prompted_entropies(joint: ArrayLike, prompt: ArrayLike) -> Floats:
    """Return ``H(X | Ȳ = f(y))`` of every skill y, ``(skills,)`` (Lemma 3.10); NaN where the prompt never occurs.

    Arguments and errors are those of :func:`is_perfect_prompt`.
    """
    _, prompted, place = _prompted(joint, prompt)
    of_skills: Floats = entropies_given(prompted)[place]
    return of_skills


def prompted_entropy(joint: ArrayLike, prompt: ArrayLike) -> float:
    """Return ``H(X | Ȳ)`` with Ȳ = f(Y) (Theorem 3.11).

    Arguments and errors are those of :func:`is_perfect_prompt`.
    """
    return conditional_entropy(_prompted(joint, prompt)[1])


def _prompted(joint: ArrayLike, prompt: ArrayLike) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """p(x, y), p(x, ȳ), and in which column of the latter each skill's prompt stands."""
    p, prompts = distribution(joint), np.asarray(prompt)
    if p.ndim != 2 or prompts.shape != p.shape[1:]:
        raise GeomprobeError(
            f"a prompting function has one prompt for each skill of p(x, y), got shape {prompts.shape} for {p.shape}"
        )
    _, place = np.unique(prompts, return_inverse=True)
    prompted: Floats = p @ (place[:, None] == np.arange(place.max() + 1))
    return p, prompted, place


# -- contexts ---------------------------------------------------------------------------------------------------------------


def context_kinds(given: ArrayLike, with_context: ArrayLike, *, tolerance: float = 1e-12) -> list[str]:
    """Return for each skill how one context affects it: ``"irrelevant"`` (Def. 3.12), ``"good"`` or ``"bad"`` (Def. 3.13), or
    ``"neither"`` if it changes the distribution of texts, but not its entropy.

    Args:
        given: p(x | Y = y), ``(texts, skills)``.
        with_context: p(x | context, Y = y), ``(texts, skills)``.
        tolerance: largest difference of two probabilities, or of two entropies, that count as equal.

    Raises:
        GeomprobeError: if a column is not a distribution, or the shapes differ.
    """
    before, after = _given(given, with_context)
    irrelevant = (np.abs(after - before) <= tolerance).all(0)
    change = entr(after).sum(0) - entr(before).sum(0)
    kinds = np.where(change < -tolerance, "good", np.where(change > tolerance, "bad", "neither"))
    return [str(kind) for kind in np.where(irrelevant, "irrelevant", kinds)]


def context_kind(p_skill: ArrayLike, given: ArrayLike, with_context: ArrayLike, *, tolerance: float = 1e-12) -> str:
    """Return which case of Theorem 3.15 applies to one context.

    ``"irrelevant"``: every skill is irrelevant to it; the conditional entropy stays as it is. ``"good"`` or ``"bad"``: it is
    good (bad) to at least one skill and irrelevant to the others; the conditional entropy falls (rises). ``"mixed"``: the
    theorem says nothing. Skills of probability 0 do not count.

    Args:
        p_skill: the distribution of skills, ``(skills,)``.
        given: p(x | Y = y), ``(texts, skills)``.
        with_context: p(x | context, Y = y), ``(texts, skills)``.
        tolerance: as in :func:`context_kinds`.

    Raises:
        GeomprobeError: as in :func:`context_kinds`, or if there is not one probability for each skill.
    """
    weights = _weights(p_skill, given)
    kinds = {
        kind for kind, weight in zip(context_kinds(given, with_context, tolerance=tolerance), weights, strict=True) if weight
    }
    kinds -= {"irrelevant"}
    return "irrelevant" if not kinds else kinds.pop() if kinds in ({"good"}, {"bad"}) else "mixed"


def context_change(p_skill: ArrayLike, given: ArrayLike, with_context: ArrayLike) -> float:
    """Return ``H(X | context, Y) − H(X | Y)``, both as means over skills under p_skill(y), as in Theorem 3.15.

    Arguments and errors are those of :func:`context_kind`.
    """
    before, after = _given(given, with_context)
    return float(_weights(p_skill, given) @ (entr(after).sum(0) - entr(before).sum(0)))


def _given(given: ArrayLike, with_context: ArrayLike) -> tuple[Floats, Floats]:
    before, after = np.asarray(given, np.float64), np.asarray(with_context, np.float64)
    if before.ndim != 2 or before.shape != after.shape:
        raise GeomprobeError(
            "a context is judged on p(x | y) and p(x | context, y), each of shape (texts, skills), got shapes "
            f"{before.shape} and {after.shape}"
        )
    for columns in (before, after):
        wrong = ~((columns >= 0).all(0) & (np.abs(columns.sum(0) - 1) <= 1e-9))
        if wrong.any():
            distribution(columns[:, wrong.argmax()])  # says what is wrong with it
    return before, after


def _weights(p_skill: ArrayLike, given: ArrayLike) -> Floats:
    weights, skills = distribution(p_skill), np.shape(given)[-1:]
    if weights.shape != skills:
        raise GeomprobeError(f"p_skill has one probability for each skill, got shape {weights.shape} for skills {skills}")
    return weights
