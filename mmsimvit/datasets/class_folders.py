"""MMPreTrain's folders of classes and lists of labels before a run."""
from collections.abc import Sequence
from pathlib import Path

from mmengine.fileio import list_from_file

from ..errors import DataError, warn_user
from .coco import some
from .label_maps import IMAGE_SUFFIXES


def check_class_folders(folder: Path, classes: list[str] | None, split: str, seen: dict[Path, list[str]],
                        suffixes: Sequence[str]) -> None:
    """Compare the folders of classes, which MMPreTrain numbers in the order of their names, with the config and other splits.

    Args:
        folder: holds them.
        classes: the names that the config has, if it has any.
        split: whose folder it is.
        seen: folder -> names of the splits before, to which this one is added.
        suffixes: of the images that MMPreTrain finds; a warning counts the others.

    Raises:
        DataError: if a class would have another number than elsewhere.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:  # MMPreTrain says so
        return
    if hidden := [name for name in names if name.startswith(('.', '__'))]:
        raise DataError(f'{folder} has the folders {some(hidden)}, which MMPreTrain would take for classes; remove them')
    if classes and len(classes) != len(names):
        raise DataError(f'{folder} has folders of {len(names)} classes ({some(names)}), but the config names {len(classes)}; '
                        f'each needs its folder, an empty one where the {split} data has no image of it, and no others')
    if classes and sorted(classes) == names != classes:
        raise DataError(f'the classes {tuple(classes)} are in another order than the folders in {folder}, which are numbered '
                        f'by their names; write them as {tuple(names)}')
    alike = {_letters(name): place for place, name in enumerate(names)}
    slipped = [name for place, name in enumerate(classes or []) if alike.get(_letters(name), place) != place]
    if slipped:
        raise DataError(f'the classes {tuple(classes or ())} are in another order than the folders in {folder}, {tuple(names)},'
                        f' whatever their capitals: {some(slipped)} would be of other folders; write them as the folders are')
    for other, others in seen.items():
        if not classes and names != others:
            differing = sorted(set(names) ^ set(others))
            raise DataError(f'{other} and {folder} do not have the folders of the same classes: only one of them has '
                            f'{some(differing)}. MMPreTrain numbers the folders that are there, so that a class would have '
                            'another number; make the missing folder, an empty one if there are no images of it')
    seen[folder] = names
    left_out = [path.relative_to(folder).as_posix() for name in names for path in sorted(Path(folder, name).rglob('*'))
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.lower().endswith(tuple(suffixes))]
    if left_out:
        warn_user(f'{len(left_out)} images in {folder} are left out, for their names do not end with one of '
                  f'{tuple(suffixes)} (extensions of the dataset): {some(left_out)}')


def _letters(name: str) -> str:
    """A name without capitals, spaces and the like."""
    return ''.join(letter for letter in name.casefold() if letter.isalnum())


def check_class_list(path: Path, number: int | None, split: str) -> None:
    """Look at each line of a list of images and labels.

    Args:
        path: a file with lines such as ``a/1.png 0``.
        number: of classes, if that is known.
        split: which it is of.

    Raises:
        DataError: if a line has no label, or one that is beyond the classes, or if an image has two.
    """
    if not path.is_file():
        raise DataError(f'annotation file {path} does not exist; put it there, or change ann_file in the config')
    found = set()
    labels: dict[str, str] = {}
    twice = []
    for count, line in enumerate(list_from_file(str(path)), start=1):
        word = line.strip().rpartition(' ')[2]
        if ' ' not in line.strip() or not word.isdecimal():
            raise DataError(f'line {count} of {path} is {line[:100]!r}; it must be the path of an image, a space and the '
                            'number of its class')
        if number and int(word) >= number:
            raise DataError(f'line {count} of {path} has the label {word}, but there are {number} classes, from 0 to '
                            f'{number - 1}; labels count from 0, and all classes must be named or counted in the config')
        found.add(int(word))
        image = line.strip().rpartition(' ')[0]
        if labels.setdefault(image, word) != word:
            twice.append(image)
    if twice:
        raise DataError(f'{len(twice)} images are in {path} with two labels: {some(twice)}; an image has one class')
    absent = sorted(set(range(number or 0)) - found)
    if absent and split == 'train':
        warn_user(f'{len(absent)} of {number} classes have no image in {path} and will not be learnt: those of the labels '
                  f'{some(absent)}')
