"""Intervals hold the truth as often as they say."""
import numpy as np
import pytest

from mmsimvit.compare.statistics import Replicates, draw_images, estimate, replicate


def mean(records, weights):
    return weights @ records['x'] / weights.sum(1)


def trainings(random, images, seeds, of_seeds, noise, value=0.):
    """Scores of images, some of them hard for all, by trainings that differ."""
    return [dict(x=value + images + random.normal(0, of_seeds) + random.normal(0, noise, len(images))) for _ in range(seeds)]


def test_draws_are_of_all_images_and_the_same_each_time():
    weights = draw_images(7, draws=50)
    assert (weights.sum(1) == 7).all()
    assert (weights == draw_images(7, draws=50)).all()
    assert weights.std() > 0.5


@pytest.mark.parametrize(('seeds', 'of_seeds', 'noise'), [(3, 0.02, 0.3), (3, 0.5, 0.1), (5, 0.2, 0.5)])
def test_coverage_of_the_paired_bootstrap(seeds, of_seeds, noise):
    """Of 95 % intervals for a difference of 0.3, by simulation: from 200 the standard error is 1.5 %."""
    random, held, trials = np.random.default_rng(0), 0, 200
    weights = draw_images(40, draws=300)
    for _ in range(trials):
        images = random.normal(0, 1, 40)
        sides = [replicate(trainings(random, images, seeds, of_seeds, noise, value), mean, weights) for value in (0.3, 0.)]
        found = estimate(*sides)
        held += found.low <= 0.3 <= found.high
    assert held / trials >= 0.92


def test_what_is_hard_for_both_does_not_widen_the_difference():
    random = np.random.default_rng(0)
    images, weights = random.normal(0, 5, 60), draw_images(60)
    one, other = (replicate(trainings(random, images, 3, 0.01, 0.1, value), mean, weights) for value in (0.2, 0.))
    alone, difference = estimate(one), estimate(one, other)
    assert difference.high - difference.low < 0.1 * (alone.high - alone.low)
    assert difference.low > 0 and difference.probability > 0.99
    assert difference.value == pytest.approx(one.points.mean() - other.points.mean())


def test_the_same_trainings_differ_by_nothing():
    random = np.random.default_rng(0)
    one = replicate(trainings(random, random.normal(0, 1, 30), 3, 0.1, 0.1), mean, draw_images(30))
    found = estimate(one, one)
    assert found.value == 0 and found.low < 0 < found.high and found.probability == pytest.approx(0.5, abs=0.05)


def test_draws_of_nothing_are_no_losses():
    draws = np.array([[1., 2., np.nan, 3.]])
    assert estimate(Replicates(np.array([2.]), draws)).probability == 1


def test_few_seeds_give_a_wider_interval():
    random = np.random.default_rng(1)
    images, weights = random.normal(0, 0.01, 30), draw_images(30)
    many = trainings(random, images, 12, 1., 0.01)
    widths = [estimate(replicate(many[:number], mean, weights)) for number in (2, 4, 12)]
    assert widths[0].high - widths[0].low > 0  # nothing is said of the spread of one alone
    assert widths[2].high - widths[2].low < widths[1].high - widths[1].low
    single = estimate(replicate(many[:1], mean, weights))
    assert single.high - single.low < 0.1  # of the images alone
