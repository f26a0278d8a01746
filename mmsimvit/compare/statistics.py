"""How sure a difference between backbones is: a bootstrap over the images, which are paired, and over the seeds."""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Records = dict[str, np.ndarray]  # of one training: what a metric keeps of each image, whose number is the first axis
Measure = Callable[[Records, np.ndarray], np.ndarray]  # records, weights (draws, images) -> scores (draws,)
DRAWS = 2000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A number, and between which limits it lies with 95 % confidence."""
    value: float
    low: float
    high: float
    probability: float  # of being above 0


class Replicates(NamedTuple):
    """One score of one backbone."""
    points: np.ndarray  # (seeds,), of all images
    draws: np.ndarray  # (seeds, draws), of images that were drawn


def draw_images(number: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each of ``number`` images is in each draw, ``(draws, number)``; the same for every backbone."""
    return np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), draws).astype(np.float64)


def replicate(records: Sequence[Records], measure: Measure, weights: np.ndarray) -> Replicates:
    """A score of each training, of all images and of each draw.

    Args:
        records: of the trainings, one for each seed.
        measure: the score.
        weights: ``(draws, images)``, of ``draw_images``.
    """
    every = np.ones((1, weights.shape[1]))
    points = np.array([measure(one, every)[0] for one in records])
    return Replicates(points, np.stack([measure(one, weights) for one in records]))


def estimate(one: Replicates, other: Replicates | None = None, seed: int = 0) -> Estimate:
    """The mean over the seeds of a backbone's score, or of its difference from another's, with its interval.

    Each draw has the images of ``draw_images``, the same for both backbones: which images are hard is no chance between them.
    Seeds are drawn for each backbone by itself, with replacement, since the same seed gives other weights to another
    architecture. A few seeds tell their spread badly: n of them, drawn with replacement, vary by (n - 1) / n of it (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 5.3), and their mean is as far out as Student's t distribution
    says. So deviations from the mean over the seeds are stretched by ``sqrt(n / (n - 1))``, and by the ratio between Student's
    and the normal quantile with as many degrees of freedom as the seeds give. The interval has the percentiles of the draws.
    With one seed the interval is of the images alone.

    Args:
        one: of a backbone.
        other: of the one that it is compared with, from the same draws.
        seed: what the draws of seeds depend on.

    Raises:
        ModuleNotFoundError: without SciPy.
    """
    from scipy.stats import t

    sides = [one] if other is None else [one, other]
    freedom = sum(len(side.points) - 1 for side in sides)
    random = np.random.default_rng(seed + 1)
    upper = 0.5 + LEVEL / 2
    value, found = 0., np.zeros(one.draws.shape[1])
    for sign, side in zip((1, -1), sides):
        seeds, draws = side.draws.shape
        value += sign * float(side.points.mean())
        mean = side.draws.mean(0)
        found += sign * mean
        if seeds > 1:
            stretch = np.sqrt(seeds / (seeds - 1)) * t.ppf(upper, freedom) / t.ppf(upper, np.inf)
            chosen = random.integers(0, seeds, (seeds, draws))
            found += sign * stretch * (side.draws[chosen, np.arange(draws)].mean(0) - mean)
    low, high = np.nanpercentile(found, [100 * (1 - upper), 100 * upper])
    found = found[~np.isnan(found)]  # a draw may have nothing that is annotated
    return Estimate(value, float(low), float(high), float((found > 0).mean() + (found == 0).mean() / 2))
