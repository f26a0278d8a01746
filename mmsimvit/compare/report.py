"""The report of a comparison: one HTML file that needs nothing else."""
import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ..files import atomic_write
from .results import flat_rows

# Of Okabe and Ito's palette, which people with any colour vision tell apart; yellow is too pale for lines.
COLOURS = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000'
MARKERS = 'osD^vPX'
WRONG = np.array([213, 94, 0])
NONE = '\N{EN DASH}'
IMAGES, WORST, PIXELS = 4, 3, 240  # how many are shown, and how wide
UNITS = {'mIoU': '%', 'boundary IoU': '%', 'object IoU': '%', 'pixel accuracy': '%', 'calibration error': '%', 'accuracy': '%',
         'cross entropy': 'nats', 'box AP': '%', 'mask AP': '%', 'AP50': '%', 'small AP': '%'}
LESS_IS_BETTER = {'calibration error', 'cross entropy'}
COSTS = {'model_ms': ('one image, ms', 'h'), 'backbone_ms': ('backbone alone, ms', 'h'),
         'training_ms': ('training step, ms', 'h'),
         'training_images_per_second': ('images per second in training', ''), 'seconds_to_goal': ('seconds to the goal', ''),
         'peak_mib': ('peak memory of a step, MiB', ''), 'saved_mib': ('saved activations, MiB', ''),
         'parameters': ('parameters, M', ''), 'gmacs': ('GMACs', ''), 'backbone_gmacs': ('GMACs of the backbone', ''),
         'learning_rate': ('learning rate', ''), 'seeds': ('seeds', '')}


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write ``report.html`` from what ``results.json`` has, and from the predictions beside it."""
    page = Template(Path(__file__).with_suffix('.html').read_text(encoding='utf-8'))
    protocol = results['protocol']
    title = f'{len(results["backbones"])} backbones, {protocol["task"]} on {Path(protocol["data"]).resolve().name}'
    body = [f'<h1>{escape(title)}</h1>', _about(results), _failures(results)]
    if any('scores' in one for one in results['backbones']):
        body += [_summary(results), _charts(results), _pairs(results), _classes(results), _curves(results)]
        body += [_stress(results), *_pictures(results)]
    body.append(_protocol(results))
    text = page.substitute(title=escape(title), body='\n'.join(body))
    atomic_write(out / 'report.html', lambda path: path.write_text(text, encoding='utf-8'))


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it."""
    if value is None or np.isnan(value):
        return NONE
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.{digits}g}'


def _about(results: dict[str, Any]) -> str:
    machine = results.get('environment') or {}
    threads = machine.get('threads', 0)
    parts = [machine.get('device', ''), f'{threads} thread{"s" * (threads > 1)}' if threads else '', machine.get('date', ''),
             f'torch {results["versions"].get("torch", "?")}', f'mmsimvit {results["versions"].get("mmsimvit", "?")}']
    left = f' Unfinished: {len(results["unfinished"])} trainings.' if results['unfinished'] else ''
    return f'<p class="about">{escape(", ".join(filter(None, parts)))}.{left}</p>'


def _failures(results: dict[str, Any]) -> str:
    told = [f'<p class="failed"><b>{escape(one["label"])}</b> '
            f'{"was left out" if one["failed"] else "failed in part" if one["seeds"] else "failed"}: '
            f'{escape(one["failed"] or "; ".join(one["failures"]))}</p>'
            for one in results['backbones'] if one['failed'] or one['failures']]
    return '\n'.join(told)


def _cell(value: Any, shown: str, kind: str = '') -> str:
    given = '' if value is None or (isinstance(value, float) and np.isnan(value)) else value
    return f'<td data-value="{escape(str(given))}"{f" class={kind!r}" if kind else ""}>{shown}</td>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], sortable: bool = True) -> str:
    told = ''.join(f'<th scope="col">{f"<button>{escape(head)}</button>" if sortable else escape(head)}</th>' for head in heads)
    lines = '\n'.join(f'<tr>{"".join(row)}</tr>' for row in rows)
    kind = ' class="sortable"' if sortable else ''
    return f'<div class="wide"><table{kind}><thead><tr>{told}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


def _summary(results: dict[str, Any]) -> str:
    rows, flat = [], flat_rows(results)
    scores = list(next(one['scores'] for one in results['backbones'] if 'scores' in one))
    costs = [name for name in COSTS if any(row.get(name) is not None for row in flat)]
    best = {name: (min if name in LESS_IS_BETTER else max)(row[name] for row in flat if name in row) for name in scores}
    for row in flat:
        cells = [_cell(row['backbone'], escape(row['backbone']))]
        for name in scores:
            if name not in row:
                cells.append(_cell(None, NONE))
                continue
            shown = f'{row[name]:.2f}<br><span class="interval">{row[f"{name} low"]:.2f} to {row[f"{name} high"]:.2f}</span>'
            cells.append(_cell(row[name], shown, 'best' if row[name] == best[name] else ''))
        for name in costs:
            value = row.get(name)
            shown = number(value / 1e6 if name == 'parameters' and value else value)
            if COSTS[name][1] and value is not None:
                shown += f'<br><span class="interval">{number(row[f"{name}_low"])} to {number(row[f"{name}_high"])}</span>'
            cells.append(_cell(value, shown))
        rows.append(cells)
    heads = ['backbone', *(f'{name}, {UNITS[name]}' for name in scores), *(COSTS[name][0] for name in costs)]
    goal = f' The goal of the seconds is {results["score"]} {results["goal"]:.2f}.' if results['goal'] is not None else ''
    return ('<h2>Summary</h2>\n<p>Scores are means over the seeds, with 95 % intervals over images and seeds below them; times '
            f'are medians with quartiles. The best of each score is bold.{goal} A heading sorts by its column.</p>\n'
            + _table(heads, rows))


def _style(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    return {label: (COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)])
            for place, label in enumerate(labels)}


def _svg(figure: Figure, salt: str) -> str:
    text = io.StringIO()
    with rc_context({'svg.hashsalt': salt, 'svg.fonttype': 'none', 'font.family': 'sans-serif'}):
        figure.savefig(text, format='svg', metadata={'Date': None, 'Creator': None})
    return text.getvalue().partition('<svg')[2].join(['<svg', ''])


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.7), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    return figure, axes


def _label(figure: Figure, axes: Axes, labels: dict[str, tuple[float, float]], style: dict[str, tuple[str, str]]) -> None:
    """Write names beside points, each where it covers no other, if there is such a place."""
    figure.canvas.draw()
    taken: list[Any] = []
    points = [axes.transData.transform(place) for place in labels.values()]
    for label, (x, y) in labels.items():
        for dx, dy, side in ((7, 5, 'left'), (7, -13, 'left'), (-7, 5, 'right'), (-7, -13, 'right'), (7, 17, 'left'),
                             (7, -25, 'left'), (-7, 17, 'right'), (-7, -25, 'right')):
            text = axes.annotate(label.replace('$', r'\$'), (x, y), (dx, dy), textcoords='offset points', ha=side,
                                 color=style[label][0], fontsize=9.5, fontweight='bold')
            box = text.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
            inside = box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height
            if inside and not any(box.overlaps(other) for other in taken) and not any(box.contains(*point) for point in points):
                break
            if (dx, dy, side) != (-7, -25, 'right'):
                text.remove()
        taken.append(box)


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Those that no other beats in both, a lower cost and a higher score, from the cheapest on.

    Args:
        points: cost and score by name.
    """
    front: list[str] = []
    for label, (_, score) in sorted(points.items(), key=lambda one: (one[1][0], -one[1][1])):
        if not front or score > points[front[-1]][1]:
            front.append(label)
    return front


def _trade(results: dict[str, Any], cost: str, xlabel: str) -> str:
    score, flat = results['score'], [row for row in flat_rows(results) if results['score'] in row and cost in row]
    style = _style([one['label'] for one in results['backbones']])
    if not flat:
        return ''
    figure, axes = _axes(xlabel, f'{score}, {UNITS[score]}')
    points = {row['backbone']: (row[cost], row[score]) for row in flat}
    for row in flat:
        (x, y), (colour, marker) = points[row['backbone']], style[row['backbone']]
        spread = [[x - row[f'{cost}_low']], [row[f'{cost}_high'] - x]] if f'{cost}_low' in row else None
        axes.errorbar(x, y, xerr=spread, yerr=[[max(0, y - row[f'{score} low'])], [max(0, row[f'{score} high'] - y)]],
                      color=colour, marker=marker, capsize=3, markersize=7, linewidth=1.2)
    front = [points[label] for label in pareto_front(points)]
    axes.plot(*zip(*front), color='#777777', linestyle='--', linewidth=1, zorder=0, drawstyle='steps-post')
    axes.margins(0.22, 0.15)
    axes.set_xlim(left=max(0, axes.get_xlim()[0]))
    _label(figure, axes, points, style)
    return f'<figure>{_svg(figure, cost)}</figure>'


def _charts(results: dict[str, Any]) -> str:
    return ('<h2>Accuracy and its price</h2>\n<p>Upper left is better. Bars are 95 % intervals of the score and quartiles of '
            'the time; the dashed line is the Pareto front, of those that no other beats in both.</p>\n<div class="charts">'
            + _trade(results, 'model_ms', 'time of the whole model for one image, ms')
            + _trade(results, 'peak_mib', 'peak memory of a training step, MiB') + '</div>')


def _curve(results: dict[str, Any], key: str, xlabel: str) -> str:
    score = results['score']
    figure, axes = _axes(xlabel, f'{score} of the validation, {UNITS[score]}')
    style, ends = _style([one['label'] for one in results['backbones']]), {}
    for one in results['backbones']:
        last = []
        for seed in one['seeds']:
            x, y = [point[key] for point in seed['curve']], [point['scores'][score] for point in seed['curve']]
            axes.plot(x, y, color=style[one['label']][0], marker=style[one['label']][1], markersize=3, linewidth=1, alpha=0.8)
            last.append((x[-1], y[-1]))
        if last:
            ends[one['label']] = (float(np.mean([x for x, _ in last])), float(np.mean([y for _, y in last])))
    axes.margins(0.15, 0.1)
    _label(figure, axes, ends, style)
    return f'<figure>{_svg(figure, key)}</figure>'


def _search(results: dict[str, Any]) -> str:
    score, style = results['score'], _style([one['label'] for one in results['backbones']])
    if not any(one['search'] for one in results['backbones']):
        return ''
    figure, axes = _axes('learning rate', f'{score} of the search, {UNITS[score]}')
    axes.set_xscale('log')
    ends = {}
    for one in results['backbones']:
        found = sorted((search['rate'], search['curve'][-1]['scores'][score]) for search in one['search'])
        if found:
            axes.plot(*zip(*found), color=style[one['label']][0], marker=style[one['label']][1])
            ends[one['label']] = found[-1]
    rates = sorted({search['rate'] for one in results['backbones'] for search in one['search']})
    axes.set_xticks(rates, [f'{rate:g}' for rate in rates])
    axes.minorticks_off()
    axes.margins(0.2, 0.1)
    _label(figure, axes, ends, style)
    return f'<figure>{_svg(figure, "search")}</figure>'


def _curves(results: dict[str, Any]) -> str:
    edge = [one['label'] for one in results['backbones'] if one['at_end_of_grid'] and one['seeds']]
    note = (f' The best rate of {escape(", ".join(edge))} is at an end of the grid: a wider one may give more.' if edge else '')
    search = ' The last picture is the search of the learning rate, on a part of the training set.' + note if any(
        one['search'] for one in results['backbones']) else ''
    return ('<h2>How they learnt</h2>\n<p>A line for each seed. A curve that still rises at its end has not had its time.'
            f'{search}</p>\n<div class="charts">'
            + _curve(results, 'iteration', 'iteration') + _curve(results, 'seconds', 'seconds of training') + _search(results)
            + '</div>')


def _pairs(results: dict[str, Any]) -> str:
    labels = [one['label'] for one in results['backbones'] if 'scores' in one]
    if len(labels) < 2:
        return ''
    score, found = results['score'], {(pair['one'], pair['other']): pair['scores'] for pair in results['pairs']}
    rows = []
    for one in labels:
        row = [f'<td>{escape(one)}</td>']
        for other in labels:
            if one == other:
                row.append(f'<td>{NONE}</td>')
                continue
            said = found[one, other][score]
            kind = 'better' if said['low'] > 0 else 'worse' if said['high'] < 0 else ''
            row.append(f'<td class="{kind}">{said["value"]:+.2f}<br><span class="interval">{said["low"]:+.2f} to '
                       f'{said["high"]:+.2f}<br>{100 * said["probability"]:.0f} % better</span></td>')
        rows.append(row)
    single = [one['label'] for one in results['backbones'] if len(one['seeds']) == 1]
    few = f' There is one seed of {escape(", ".join(single))}, whose chance the intervals leave out.' if single else ''
    return (f'<h2>Differences</h2>\n<p>{escape(score)} of the row less that of the column, its 95 % interval, and how probable '
            'it is that the row is better. Blue is better, orange worse, where the interval leaves out 0; where it holds 0, '
            f'this comparison does not say which is better.{few}</p>\n' + _table(['', *labels], rows, sortable=False))


def _classes(results: dict[str, Any]) -> str:
    some = [one for one in results['backbones'] if one.get('classes')]
    if not some:
        return ''
    means = [[_mean([seed[place] for seed in one['classes']]) for one in some] for place in range(len(results['classes']))]
    rows = []
    for name, values in zip(results['classes'], means):
        shown = [NONE if value is None else f'{value:.1f}' for value in values]
        best = max((value for value in values if value is not None), default=0.)
        told = f'{best:.1f}' if len(set(shown)) > 1 else ''  # of equal ones, none is the best
        cells = [_cell(value, text, 'best' if text == told else '') for value, text in zip(values, shown)]
        rows.append([_cell(name, escape(name)), *cells])
    kind = {'segmentation': 'IoU', 'detection': 'AP', 'classification': 'accuracy'}[results['protocol']['task']]
    return (f'<h2>Classes</h2>\n<p>{kind} of each class in per cent, mean over the seeds; the best is bold.</p>\n'
            + _table(['class', *(one['label'] for one in some)], rows))


def _stress(results: dict[str, Any]) -> str:
    """Scores at other sizes, and on corrupted images."""
    score = results['score']
    some = [one for one in results['backbones'] if any(seed['stress'] for seed in one['seeds'])]
    names = list(dict.fromkeys(name for one in some for seed in one['seeds'] for name in seed['stress']))
    means = {(one['label'], name): _mean([seed['stress'][name][score] for seed in one['seeds'] if name in seed['stress']])
             for one in some for name in names}
    told, sizes = [], sorted(float(name.split()[1]) for name in names if name.startswith('size '))
    if sizes:
        figure, axes = _axes("size of the test images, times the protocol's", f'{score}, {UNITS[score]}')
        style, ends = _style([one['label'] for one in results['backbones']]), {}
        for one in some:
            points = {size: means[one['label'], f'size {size:g}'] for size in sizes} | {1.: one['scores'][score]['value']}
            line = sorted((size, value) for size, value in points.items() if value is not None)
            axes.plot(*zip(*line), color=style[one['label']][0], marker=style[one['label']][1])
            ends[one['label']] = line[-1]
        axes.margins(0.15, 0.1)
        _label(figure, axes, ends, style)
        told.append(f'<div class="charts"><figure>{_svg(figure, "sizes")}</figure></div>')
    kinds = list(dict.fromkeys(name.split()[0] for name in names if not name.startswith('size ')))
    if kinds:
        rows = []
        for one in some:
            values = {kind: _mean([means[one['label'], name] for name in names if name.startswith(f'{kind} ')])
                      for kind in kinds}
            whole = _mean(list(values.values()))
            clean = one['scores'][score]['value']
            kept = None if whole is None or not clean else 100 * whole / clean
            rows.append([_cell(one['label'], escape(one['label'])), *(
                _cell(value, NONE if value is None else f'{value:.2f}') for value in (clean, *values.values(), whole, kept))])
        severities = sorted({name.split()[1] for name in names if not name.startswith('size ')})
        told.append(f'<p>{escape(score)} on corrupted images, mean over the seeds and the severities {", ".join(severities)}; '
                    'kept is the share of what it is on clean ones, in per cent.</p>' + _table(
                        ['backbone', 'clean', *kinds, 'mean', 'kept, %'], rows))
    return '<h2>Other sizes, worse images</h2>\n' + '\n'.join(told) if told else ''


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _png(pixels: np.ndarray, photo: bool = False) -> str:
    picture = Image.fromarray(pixels.astype(np.uint8))
    if picture.width > PIXELS:
        size = PIXELS, max(1, round(picture.height * PIXELS / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)
    content = io.BytesIO()
    picture.save(content, 'JPEG' if photo else 'PNG', **(dict(quality=85) if photo else dict(optimize=True)))
    return f'data:image/{"jpeg" if photo else "png"};base64,{base64.b64encode(content.getvalue()).decode()}'


def _figure(source: str, caption: str) -> str:
    return f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _pictures(results: dict[str, Any]) -> list[str]:
    """Images with their annotation and predictions, of segmentation: those of the first seed."""
    folders = {one['label']: Path(one['seeds'][0]['config']).parent / 'predictions' for one in results['backbones']
               if one['seeds'] and (Path(one['seeds'][0]['config']).parent / 'predictions').is_dir()}
    if not folders or not results.get('palette'):
        return []
    palette = np.zeros((256, 3), np.uint8)
    palette[:len(results['palette'])] = results['palette'][:256]
    palette[255] = 255
    paths = results['images']

    def read(label: str, place: int, kind: str = '') -> np.ndarray:
        return np.asarray(Image.open(folders[label] / f'{place:06d}{kind}.png'))

    def photo(place: int) -> np.ndarray:
        return np.asarray(ImageOps.exif_transpose(Image.open(paths[place])).convert('RGB'))  # as it is loaded

    first = next(iter(folders))
    body = ['<h2>What they see</h2>', '<p>The same images, evenly out of the validation set, with the annotation and the '
            'predictions of the first seed. The last picture marks the pixels where the backbones differ.</p>',
            '<div class="key">' + ''.join(
                f'<span><i style="background:rgb({", ".join(map(str, colour))})"></i>{escape(name)}</span>'
                for name, colour in zip(results['classes'], results['palette'])) + '</div>']
    for place in np.unique(np.linspace(0, len(paths) - 1, min(IMAGES, len(paths))).astype(int)).tolist():
        image, labels = photo(place), read(first, place, '.labels')
        predicted = {label: read(label, place) for label in folders}
        parts = [_figure(_png(image, photo=True), Path(paths[place]).name), _figure(_png(palette[labels]), 'annotation')]
        parts += [_figure(_png(palette[found]), label) for label, found in predicted.items()]
        if len(predicted) > 1:
            differ = np.any([found != predicted[first] for found in predicted.values()], axis=0)
            parts.append(_figure(_png(_marked(image, differ), photo=True), f'differ: {100 * differ.mean():.0f} %'))
        body.append(f'<div class="images">{"".join(parts)}</div>')
    body += ['<h2>Worst images</h2>', '<p>Those with the lowest mean IoU of the classes in them, by the first seed; wrong '
             'pixels are marked on the image.</p>']
    for one in results['backbones']:
        if one['label'] not in folders or not one.get('image_scores'):
            continue
        known = [np.inf if value is None else value for value in one['image_scores']]
        worst = np.argsort(known, kind='stable')[:WORST].tolist()
        parts = []
        for place in worst:
            labels, found = read(one['label'], place, '.labels'), read(one['label'], place)
            wrong = (labels != found) & (labels != 255)
            parts += [_figure(_png(_marked(photo(place), wrong), photo=True),
                              f'{Path(paths[place]).name}: {one["image_scores"][place]:.1f} %'),
                      _figure(_png(palette[found]), 'prediction')]
        body.append(f'<h3>{escape(one["label"])}</h3><div class="images">{"".join(parts)}</div>')
    return body


def _marked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    grey = image.mean(-1, keepdims=True).repeat(3, -1)
    return np.where(mask[..., None], 0.3 * grey + 0.7 * WRONG, 0.6 * grey + 80)


def _protocol(results: dict[str, Any]) -> str:
    protocol, words = results['protocol'], []
    budget = f'{protocol["iterations"]} iterations'
    if protocol['minutes']:
        budget = f'{protocol["minutes"]:g} minutes, which gave each backbone as many iterations as it does in that time'
    words.append(f'Each backbone is trained for {budget}, with a batch size of {protocol["batch_size"]}, in the same model '
                 f'({protocol["head"]}), on the same data with the same augmentation: only the backbone differs, and what must '
                 'follow its widths. Maps of one stride become four by a pyramid. Without weights of its own a backbone starts '
                 'from random ones, with batch norms that learn and without drop path.')
    if len(protocol['rates']) > 1:
        words.append('AdamW with a cosine schedule; the learning rate is the best of '
                     f'{", ".join(f"{r:g}" for r in protocol["rates"])} '
                     f'for each backbone, searched with the same budget and one seed on up to {protocol["search_images"]} '
                     'training images, a fifth of which score it. The validation set is not looked at for that.')
    else:
        words.append(f'AdamW with a cosine schedule and a learning rate of {protocol["rates"][0]:g}, which was not searched.')
    words.append(f'Intervals are of a bootstrap with {results["draws"]} draws of validation images, the same for all '
                 "backbones, and of seeds, for each by itself; deviations of few seeds are stretched as Student's t "
                 'distribution says. Scores are those of the last iteration.')
    size = results.get('size')
    if size:
        words.append(f'Times are medians of interleaved rounds on images of {size[0]} x {size[1]} pixels, with random weights, '
                     'float32. Memory and saved activations are those of a training step on one batch. GMACs are '
                     'multiply-accumulates of convolutions, matrix products and attention.')
    versions = ', '.join(f'{name} {value}' for name, value in results['versions'].items())
    commit = f' Commit {results["commit"]}.' if results['commit'] else ''
    return ('<h2>Protocol</h2>\n' + '\n'.join(f'<p>{escape(line)}</p>' for line in words)
            + f'\n<p>The same again:</p>\n<pre>{escape(results["command"])}</pre>\n'
            f'<p class="about">{escape(versions)}.{commit} All numbers are in results.json and results.csv beside this '
            'file; runs/ has the config of each training.</p>')
