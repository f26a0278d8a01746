"""All numbers of a comparison, from whatever is done."""
import csv
import io
import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..config_files import PACKAGE
from ..errors import DataError
from ..files import atomic_write
from ..stacks import installed_stack, name_of
from .metrics import (
    CLASSIFICATION,
    SEGMENTATION,
    class_accuracy,
    class_ap,
    class_iou,
    detection_measures,
    load_records,
    mean_iou,
)
from .plan import RATE, TASKS, Candidate, Job, Protocol
from .queue import failure_of, is_done, result_of
from .record import write_json
from .statistics import DRAWS, Estimate, Measure, Replicates, draw_images, estimate, replicate

DETECTION_DRAWS = 500  # which each sorts out anew what was found


def best_rates(jobs: Sequence[Job], protocol: Protocol, candidates: Sequence[Candidate]) -> dict[str, float]:
    """For each backbone the learning rate with the best score in the search, when all of it is over; of equal ones the lowest.

    One that a training was written with stays, whatever a search that failed gives when it is tried again.
    """
    if len(protocol.rates) == 1:
        return {candidate.label: protocol.rates[0] for candidate in candidates if candidate.fit}
    score, found = TASKS[protocol.task].score, {}
    for candidate in candidates:
        mine = [job for job in jobs if job.candidate.label == candidate.label]
        chosen = mine[0].folder.with_name(RATE) if mine else None
        if chosen and chosen.is_file():
            found[candidate.label] = json.loads(chosen.read_text())
            continue
        if not all(is_done(job) or failure_of(job) for job in mine):
            continue
        scores = {job.rate: result_of(job)['curve'][-1]['scores'][score] for job in mine if is_done(job)}
        known = {rate: value for rate, value in sorted(scores.items()) if not np.isnan(value)}
        if known:
            found[candidate.label] = max(known, key=known.__getitem__)
    return found


def _numbers(found: Estimate) -> dict[str, float]:
    return dict(found._asdict())


def _reverse(found: Estimate) -> Estimate:
    return Estimate(0. - found.value, 0. - found.high, 0. - found.low, 1. - found.probability)


def _within(found: dict[str, float]) -> dict[str, float]:
    """Limits within 0 and 100 %, beyond which the stretch of few seeds may lie."""
    return {**found, **{name: min(max(found[name], 0.), 100.) for name in ('low', 'high')}}


def _versions() -> dict[str, str]:
    found = {'python': platform.python_version()}
    for name in ('mmsimvit', *map(name_of, installed_stack().values())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Of a checkout, with a plus sign if it was changed."""
    if not (PACKAGE.parent / '.git').exists():
        return None
    words = [subprocess.run(['git', '-C', str(PACKAGE.parent), *command.split()], capture_output=True, text=True).stdout.strip()
             for command in ('rev-parse HEAD', 'status --porcelain')]
    return words[0] + ('+' if words[1] else '') or None


def collect(protocol: Protocol, candidates: Sequence[Candidate], searches: Sequence[Job], trainings: Sequence[Job],
            measured: dict[str, Any], info: dict[str, Any], command: str, goal: float | None = None) -> dict[str, Any]:
    """Everything that ``results.json`` has.

    Args:
        protocol: what is the same for all.
        candidates: the backbones, also those that failed.
        searches, trainings: jobs, done or not.
        measured: of ``measure_candidates``.
        info: ``metainfo`` of the data: its classes, and their palette if it has one.
        command: that made it.
        goal: a score to which seconds are told; the lowest of the backbones' if None.

    Raises:
        DataError: if trainings were validated on different images.
    """
    score, draws = TASKS[protocol.task].score, DETECTION_DRAWS if protocol.task == 'detection' else DRAWS
    measures: dict[str, Measure] = {}
    of_classes = dict(segmentation=class_iou, detection=class_ap, classification=class_accuracy)[protocol.task]
    done = {candidate.label: [job for job in trainings if job.candidate.label == candidate.label and is_done(job)]
            for candidate in candidates}
    records = {label: [load_records(job.folder / 'records.npz') for job in jobs] for label, jobs in done.items() if jobs}
    scores: dict[str, dict[str, Replicates]] = {}
    images: list[str] = []
    if records:
        first = next(iter(records.values()))[0]
        images = first['image'].tolist()
        for job, mine in ((job, mine) for label, some in records.items() for job, mine in zip(done[label], some)):
            if mine['image'].tolist() != images:
                raise DataError(f'{job.folder} was validated on other images than {done[next(iter(records))][0].folder}: the '
                                'data were changed in between; start anew in another folder, with --out-dir')
        weights = draw_images(len(images), draws)
        measures = (SEGMENTATION if protocol.task == 'segmentation' else CLASSIFICATION if protocol.task == 'classification'
                    else detection_measures(first))
        every = np.ones((1, len(images)))
        measures = {name: measure for name, measure in measures.items() if not np.isnan(measure(first, every)[0])}
        scores = {label: {name: replicate(some, measure, weights) for name, measure in measures.items()}
                  for label, some in records.items()}
    rates = best_rates(searches, protocol, candidates)
    rows = []
    for candidate in candidates:
        label = candidate.label
        costs = measured.get('backbones', {}).get(label, {})
        failures = [f'{job.name}: {reason}' for job in (*searches, *trainings)
                    if job.candidate.label == label and (reason := failure_of(job))]
        row: dict[str, Any] = dict(
            label=label, word=candidate.word, failed=candidate.reason or costs.get('failed') or None, failures=failures,
            model=candidate.fit.model if candidate.fit else None, rate=rates.get(label),
            at_end_of_grid=len(protocol.rates) > 1 and rates.get(label) in (min(protocol.rates), max(protocol.rates)),
            search=[dict(rate=job.rate, curve=result_of(job)['curve']) for job in searches
                    if job.candidate.label == label and is_done(job)],
            costs=costs, seeds=[])
        for job in done[label]:
            noted = result_of(job)
            row['seeds'].append(dict(
                seed=job.seed, config=(job.folder / 'config.py').as_posix(), iterations=noted['iterations'],
                seconds=noted['seconds'], images_per_second=noted['images_per_second'], peak_bytes=noted['peak_bytes'],
                curve=noted['curve'], scores=noted['curve'][-1]['scores'], stress=_stress(job)))
        if label in scores:
            row['scores'] = {name: _within(_numbers(estimate(found))) for name, found in scores[label].items()}
            every = np.ones((1, len(images)))
            row['classes'] = []
            for record in records[label]:
                known = [None if np.isnan(value) else float(value) for value in of_classes(record, every)[0]]
                row['classes'].append(known + [None] * (len(info['classes']) - len(known)))  # the last ones may have no image
            if protocol.task == 'segmentation':
                row['image_scores'] = [None if np.isnan(value) else float(value)
                                       for value in mean_iou(records[label][0], np.eye(len(images)))]
        rows.append(row)
    if goal is None:
        goal = min((row['scores'][score]['value'] for row in rows if 'scores' in row), default=None)
    for row in rows:
        row['seconds_to_goal'] = [_seconds_to(one['curve'], score, goal) for one in row['seeds']]
    pairs = []
    for left, right in combinations(scores, 2):
        found = {name: estimate(scores[left][name], scores[right][name]) for name in measures}
        pairs += [dict(one=left, other=right, scores={name: _numbers(value) for name, value in found.items()}),
                  dict(one=right, other=left, scores={name: _numbers(_reverse(value)) for name, value in found.items()})]
    return dict(command=command, commit=_commit(), versions=_versions(), protocol=protocol._asdict(), draws=draws, score=score,
                classes=list(info['classes']), palette=palette(info), images=images, goal=goal,
                environment=measured.get('environment'), size=measured.get('size'),
                unfinished=[job.name for job in (*searches, *trainings) if not is_done(job)],
                backbones=rows, pairs=pairs)


def palette(info: dict[str, Any]) -> list[list[int]]:
    """A colour for each class, red, green and blue: the data's own, or those of matplotlib's tab20."""
    given = info.get('palette')
    if given and len(given) >= len(info['classes']):
        return [list(map(int, colour)) for colour in given]
    from matplotlib import colormaps
    return [[round(255 * part) for part in colormaps['tab20'](number % 20)[:3]] for number in range(len(info['classes']))]


def _stress(job: Job) -> dict[str, dict[str, float]]:
    path = job.folder / 'stress.json'
    return json.loads(path.read_text()) if path.is_file() else {}


def _seconds_to(curve: list[dict], score: str, goal: float | None) -> float | None:
    """The seconds of training until a validation first gave a score."""
    return next((point['seconds'] for point in curve if goal is not None and point['scores'][score] >= goal), None)


def flat_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each backbone, of plain numbers."""
    rows = []
    for one in results['backbones']:
        costs = one['costs']
        row = dict(backbone=one['label'], seeds=len(one['seeds']), learning_rate=one['rate'], failed=one['failed'] or '; '.join(
            one['failures']))
        for name, found in one.get('scores', {}).items():
            row |= {name: found['value'], f'{name} low': found['low'], f'{name} high': found['high']}
        if 'model' in costs:
            row |= dict(parameters=costs['parameters'], backbone_parameters=costs['backbone_parameters'],
                        gmacs=costs['macs'] / 1e9, backbone_gmacs=costs['backbone_macs'] / 1e9)
            for name in ('backbone', 'model', 'training'):
                low, middle, high = quartiles(costs[name])
                row |= {f'{name}_ms': 1000 * middle, f'{name}_ms_low': 1000 * low, f'{name}_ms_high': 1000 * high}
            row |= dict(saved_mib=costs['saved_bytes'] / 2**20, peak_mib=costs['peak_bytes'] / 2**20,
                        peak_inference_mib=costs['peak_bytes_inference'] / 2**20)
        if one['seeds']:
            row['training_images_per_second'] = statistics.median(seed['images_per_second'] for seed in one['seeds'])
            known = [seconds for seconds in one['seconds_to_goal'] if seconds is not None]
            row['seconds_to_goal'] = statistics.median(known) if len(known) == len(one['seeds']) else None
        rows.append(row)
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else [values[0]] * 3
    return low, middle, high


def write_results(results: dict[str, Any], out: Path) -> None:
    """``results.json`` and ``results.csv``."""
    write_json(out / 'results.json', json.loads(json.dumps(results), parse_constant=lambda _: None))  # NaN is no JSON
    rows = flat_rows(results)
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
    atomic_write(out / 'results.csv', lambda path: path.write_text(text.getvalue()))
