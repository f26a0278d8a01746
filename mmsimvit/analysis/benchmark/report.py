"""Tables, JSON and plots of what was measured."""
import datetime
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .candidates import COPY
from .measure import STEPS, Candidate, ratio

FLOOR_UNITS = dict(forward=4, training=11)  # maps that central attention must at least read and write


def records(case: str, candidates: list[Candidate], baseline: str) -> list[dict]:
    """One dict for each candidate and step, with all times in seconds and sizes in bytes."""
    by_name = {candidate.name: candidate for candidate in candidates}
    rows = []
    for step in STEPS:
        for candidate in candidates:
            seconds = candidate.seconds.get(step)
            if not seconds or candidate.name == COPY:
                continue
            row: dict[str, Any] = dict(
                case=case, step=step, name=candidate.name, baseline=baseline, seconds=seconds,
                median_seconds=statistics.median(seconds), peak_bytes=candidate.peak_bytes.get(step))
            row['times_faster'], *row['times_faster_quartiles'] = ratio(by_name[baseline].seconds[step], seconds)
            if step == 'training':
                row['saved_bytes'] = candidate.saved_bytes
                saved = by_name[baseline].saved_bytes
                row['saved_ratio'] = row['saved_bytes'] / saved if saved else 1.0  # views and whole numbers alone
            row['peak_ratio'] = row['peak_bytes'] / by_name[baseline].peak_bytes[step]
            if COPY in by_name:
                copy = statistics.median(by_name[COPY].seconds['forward'])
                row['times_floor'] = row['median_seconds'] / (copy * FLOOR_UNITS[step] / 2)
            rows.append(row)
    return rows


def environment(device: torch.device, threads: int, dtype: str) -> dict:
    """What the numbers depend on beside the code: device, threads, dtype, torch; and the date."""
    processor = platform.processor()
    if Path('/proc/cpuinfo').is_file():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        processor = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), processor)
    return dict(date=datetime.date.today().isoformat(), torch=torch.__version__, dtype=dtype, threads=threads,
                device=torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU {processor}'.strip())


def describe(about: dict) -> str:
    """An ``environment`` on one line."""
    return f'{about["device"]}, {about["threads"]} threads, {about["dtype"]}, torch {about["torch"]}, {about["date"]}'


def print_table(rows: list[dict], about: dict) -> None:
    """Print what ``records`` gave for all cases."""
    floor = any('times_floor' in row for row in rows)
    table = Table(title=describe(about), caption='median (quartiles) of interleaved rounds; "faster" and the numbers beside '
                  f'memory are relative to {rows[0]["baseline"]}'
                  + '; the floor is the time that copying what must be read and written would take' * floor)
    columns = ['case', 'step', 'name', 'ms', 'faster', 'saved MiB', '', 'peak MiB', '']
    for name in columns + ['times the floor'] * floor:
        table.add_column(name, justify='left' if name in ('case', 'step', 'name') else 'right')
    previous = dict(case=None, step=None)
    for row in rows:
        new_case, new_step = (row[key] != previous[key] for key in ('case', 'step'))
        if new_case or new_step:
            table.add_section()
        previous = row
        low, high = row['times_faster_quartiles']
        saved = ([f'{row["saved_bytes"] / 2**20:.0f}', f'{row["saved_ratio"]:.2f}'] if 'saved_bytes' in row else ['', ''])
        table.add_row(row['case'] if new_case else '', row['step'] if new_case or new_step else '', row['name'],
                      f'{1000 * row["median_seconds"]:.1f}',
                      f'{row["times_faster"]:.2f} ({low:.2f}-{high:.2f})', *saved,
                      f'{row["peak_bytes"] / 2**20:.0f}', f'{row["peak_ratio"]:.2f}',
                      *([f'{row["times_floor"]:.1f}' if 'times_floor' in row else ''] if floor else []))
    console = Console()
    console.width = max(console.width, 140)  # a log has no width of its own
    console.print(table)


def write(rows: list[dict], about: dict, folder: Path) -> None:
    """``benchmark.json`` and ``benchmark.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'benchmark.json').write_text(json.dumps(dict(environment=about, results=rows), indent=1) + '\n')
    plot(rows, about, folder / 'benchmark.png')


def plot(rows: list[dict], about: dict, file: Path) -> None:
    """Time and memory of every candidate over the cases, a column for each step."""
    from matplotlib.figure import Figure
    cases = list(dict.fromkeys(row['case'] for row in rows))
    names = list(dict.fromkeys(row['name'] for row in rows))
    steps = [step for step in STEPS if any(row['step'] == step for row in rows)]
    figure = Figure(figsize=(max(4.5, 1.1 * len(cases) + 2) * len(steps), 6.5), layout='constrained')
    axes = figure.subplots(2, len(steps), squeeze=False, sharey='row')
    for column, step in enumerate(steps):
        for name in names:
            found = {row['case']: row for row in rows if row['name'] == name and row['step'] == step}
            places = [place for place, case in enumerate(cases) if case in found]
            times = [sorted(1000 * s for s in found[cases[place]]['seconds']) for place in places]
            medians = [statistics.median(values) for values in times]
            spread = ([m - v[len(v) // 4] for m, v in zip(medians, times)],
                      [v[-1 - len(v) // 4] - m for m, v in zip(medians, times)])
            axes[0, column].errorbar(places, medians, spread, marker='o', capsize=3, label=name)
            peaks = [found[cases[place]]['peak_bytes'] / 2**20 for place in places]
            axes[1, column].plot(places, peaks, marker='o', label=name)
        for axis, label in zip(axes[:, column], ('time, ms', 'peak memory, MiB')):
            axis.set(title=step, yscale='log', ylabel=label if column == 0 else None)
            axis.set_xticks(range(len(cases)), cases, rotation=30, ha='right')
            axis.grid(True, axis='y', which='both', alpha=0.3)
            axis.tick_params(labelleft=True)
    axes[0, 0].legend(fontsize='small')
    figure.suptitle(describe(about), fontsize='small')
    figure.savefig(file, dpi=120)
