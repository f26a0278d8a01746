"""A comparison as Slurm's batch jobs: measurement, an array of searches, an array of trainings, and the report."""
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..files import atomic_write

STAGES = ('measure', 'search', 'train', 'report')


def write_scripts(out: Path, words: Sequence[str], options: str, counts: dict[str, int], at_once: int) -> list[Path]:
    """Write the scripts, in the order in which they follow each other.

    Args:
        out: the comparison's folder, which gets them and their logs.
        words: of the command line, without those for Slurm.
        options: of sbatch, in one text: ``--partition=gpu --gres=gpu:1``.
        counts: how many trainings the stages ``search`` and ``train`` have.
        at_once: how many tasks of an array run at a time.
    """
    paths = []
    for stage in STAGES:
        number = counts.get(stage, 1)
        if not number:
            continue
        is_array = stage in counts
        lines = ['#!/bin/sh', f'#SBATCH --job-name=compare-{stage}', '#SBATCH --requeue',
                 f'#SBATCH --output={out / "slurm" / stage}-%{"A_%a" if is_array else "j"}.log']
        lines += [f'#SBATCH --array=0-{number - 1}%{at_once}'] if is_array else []
        lines += [f'#SBATCH {word}' for word in shlex.split(options)]
        command = shlex.join([sys.executable, '-m', 'mmsimvit', 'compare', *words, '--stage', stage])
        lines += [f'exec {command}' + (' --number "$SLURM_ARRAY_TASK_ID"' if is_array else '')]
        path, text = out / 'slurm' / f'{stage}.sh', '\n'.join(lines) + '\n'
        atomic_write(path, lambda unfinished, text=text: unfinished.write_text(text))  # type: ignore[misc]
        paths.append(path)
    return paths


def submit(paths: Sequence[Path]) -> list[str]:
    """Submit scripts, each to begin when the one before has ended, whatever became of it; give the jobs' numbers.

    Raises:
        ConfigError: if there is no sbatch, or it refuses a script.
    """
    if shutil.which('sbatch') is None:
        raise ConfigError(f'there is no sbatch here; the scripts are in {paths[0].parent}: submit them in the order '
                          f'{", ".join(path.name for path in paths)}, each with --dependency=afterany:NUMBER of the one before')
    numbers: list[str] = []
    for path in paths:
        after = [f'--dependency=afterany:{numbers[-1]}'] if numbers else []
        found = subprocess.run(['sbatch', '--parsable', *after, str(path)], capture_output=True, text=True)
        if found.returncode:
            raise ConfigError(f'sbatch refuses {path}: {" ".join(found.stderr.split())}')
        numbers.append(found.stdout.strip().partition(';')[0])
    return numbers
