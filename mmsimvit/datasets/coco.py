"""COCO annotation files before a run: what is refused, and what is left out of a training and said."""
import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from ..errors import DataError, warn_user
from .headers import LYING, read_header

# Why annotations are left out of a training.
NO_IMAGE = 'of no image'
NO_AREA = 'with boxes outside of their image or narrower than a pixel'
NO_POLYGON = 'whose masks have no polygon of three points'
MOST_ODD = 0.1  # of boxes that reach beyond their images, or do not fit their masks


class CocoFile(NamedTuple):
    """What the splits of one run are compared by."""
    path: Path
    names: list[str]  # of its categories, of those that the config names


def check_coco(dataset: dict, images: Path, classes: list[str], split: str, files: list[CocoFile]) -> None:
    """Look at an annotation file: categories, image entries, annotations, and the sizes of the images in their headers.

    Args:
        dataset: the config of a ``CocoDataset``.
        images: their folder.
        classes: names that the config, or the data set, has.
        split: ``train``, ``val`` or ``test``, of which no annotations are needed, as COCO's test-dev has none.
        files: of the splits before, to which this one is added.

    Raises:
        DataError: naming what is wrong and what to do.
    """
    path = Path(dataset.get('data_root') or '', dataset['ann_file'])
    steps = {name_of(step): step for step in dataset.get('pipeline', ())}
    with_mask = any(step.get('with_mask') for step in steps.values())
    # Images for semi-supervised training have no annotations.
    annotated = split == 'val' or (split == 'train' and any(name.endswith('LoadAnnotations') for name in steps))
    coco = _read(path, ('images', 'annotations', 'categories') if annotated else ('images', 'categories'))
    _check_categories(path, coco, classes, split, files)
    wanted = {category['id']: category['name'] for category in coco['categories'] if category['name'] in classes}
    of_classes = [item for item in coco.get('annotations', ()) if item.get('category_id') in wanted]
    sizes = _check_image_entries(path, coco['images'])
    annotations = _check_annotations(path, [item for item in of_classes if not item.get('ignore')], sizes, with_mask, split)
    if annotated and split == 'train':
        _check_what_is_trained_on(path, annotations, sizes, wanted, dataset.get('filter_cfg') or {},
                                  set(sizes) - {item['image_id'] for item in of_classes})
    elif (split == 'val' or of_classes) and all(item['iscrowd'] for item in annotations):
        warn_user(f'nothing can be evaluated on {path}: ' + (
            f'all of its {len(annotations)} annotations are crowds (iscrowd=1). If they are single things, as some tools write '
            'brush masks, set iscrowd to 0' if annotations else f'it has no annotation of {some(classes)} in its images'))
    _check_images(path, images, sizes, ignores_exif(dataset))


def name_of(part: dict) -> str:
    """The name of a config's type, which in pure Python configs is the class itself."""
    kind = part.get('type')
    return kind.__name__ if isinstance(kind, type) else str(kind)


def ignores_exif(dataset: dict) -> bool:
    """Whether a data set's images are loaded as they lie in their files, whatever their EXIF data says."""
    loading = [step for step in dataset.get('pipeline', ()) if name_of(step).endswith('LoadImageFromFile')]
    return any(str(step.get('color_type', 'color')) not in ('color', 'grayscale') for step in loading)


def _read(path: Path, required: tuple[str, ...]) -> dict:
    try:
        with open(path, encoding='utf-8') as file:
            coco = json.load(file)
    except FileNotFoundError:
        raise DataError(f'annotation file {path} does not exist; put it there, or change ann_file in the config') from None
    except ValueError as error:
        raise DataError(f'annotation file {path} is no JSON ({error}); is it cut short?') from error
    missing = [key for key in required
               if not isinstance(coco, dict) or not isinstance(coco.get(key), list)]
    if missing:
        raise DataError(f'annotation file {path} is not in COCO format: it has no list of {", ".join(missing)}')
    if not coco['images']:
        raise DataError(f'annotation file {path} lists no images; nothing could be trained or evaluated on it')
    return coco


def _check_categories(path: Path, coco: dict, classes: list[str], split: str, files: list[CocoFile]) -> None:
    """Compare categories with the classes of the config, of the annotations, and of other splits."""
    if any(not isinstance(category, dict) or not {'id', 'name'} <= category.keys() for category in coco['categories']):
        raise DataError(f'a category of {path} has no id or no name; give each one both')
    known = [category['id'] for category in coco['categories']]
    if len({*known}) < len(known):
        raise DataError(f'two categories of {path} have the same id, of {some(known)}, and one would get the annotations of '
                        'both; give each an id of its own')
    names = [category['name'] for category in coco['categories']]
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise DataError(f'no category of {path} is called {some(unknown)}; it has '
                        f'{some(names)}: set classes (metainfo=dict(classes=...)) in the config')
    twice = [name for name, count in Counter(names).items() if count > 1 and name in classes]
    if twice:
        ids = [category['id'] for category in coco['categories'] if category['name'] == twice[0]]
        raise DataError(f'two categories of {path} have the same name {twice[0]!r} (ids {some(ids)}), and would be '
                        'two classes; take the one without annotations out of the file, or give all annotations the id of one '
                        'of them')
    named = [name for name in names if name in classes]
    for other in files:
        if split != 'train' and other.names != named and sorted(other.names) == sorted(named):
            # MMDetection numbers classes in the order of the file, whatever the order of the config.
            raise DataError(f'the categories of {path} are in another order than those of {other.path}, and one of them would '
                            f'have its names swapped; list them in both files as {some(other.names)}; their ids can stay')
    if classes != named:
        raise DataError(f'the classes {tuple(classes)} are in another order than in {path}, and names would be '
                        f'swapped; write them as {tuple(named)}' + (
                            ', if the model was trained with that order, or else list the categories of the file in the order '
                            'of its training' if split == 'test' else ''))
    files.append(CocoFile(path, named))
    strays = [item for item in coco.get('annotations', ()) if item.get('category_id') not in known]
    if strays:
        raise DataError(f'{len(strays)} of {len(coco["annotations"])} annotations of {path} are of no category that is listed, '
                        f'such as annotation {strays[0].get("id")} with category_id {strays[0].get("category_id")!r}; the '
                        f'categories have the ids {some(known)}. Does one of them count from 0 and the other from 1?')


def _check_what_is_trained_on(path: Path, annotations: list[dict], sizes: dict[int, tuple[str, float, float]],
                              wanted: dict[int, str], filters: dict, empty: set[int]) -> None:
    """Say which images and classes nothing will be learnt from.

    Args:
        wanted: category id -> name, of the classes.
        empty: ids of images without annotation of these.
    """
    classes = list(wanted.values())
    crowds = sum(bool(item.get('iscrowd')) for item in annotations)
    of_crowds = f'; {crowds} are crowds (iscrowd=1), which nothing is trained on' if crowds else ''
    least = filters.get('min_size', 0)
    small = [name for name in sizes.values() if min(name[1:]) < least]
    if small:
        warn_user(f'{len(small)} of {len(sizes)} images in {path} are left out, for they are narrower or lower than '
                  f'{least} pixels (filter_cfg.min_size): {some([name for name, *_ in small])}')
    found = {wanted[item['category_id']] for item in annotations if not item.get('iscrowd')}
    if not found and filters.get('filter_empty_gt'):
        raise DataError(f'{path} has no annotation of {some(classes)}{of_crowds}; there is nothing to learn from it')
    if len(found) < len(classes):
        warn_user(f'{len(classes) - len(found)} of {len(classes)} classes have no annotation in {path} and will not '
                  f'be learnt: {some([name for name in classes if name not in found])}{of_crowds}')
    if empty and filters.get('filter_empty_gt'):
        warn_user(f'{len(empty)} of {len(sizes)} images in {path} are left out, for they have no annotation of these classes '
                  f'(filter_cfg.filter_empty_gt, with False they are trained on): {some([sizes[image][0] for image in empty])}')


def _check_images(path: Path, folder: Path, sizes: dict[int, tuple[str, float, float]], lies: bool) -> None:
    """Compare the sizes in the headers of images with those that the annotations are for.

    Args:
        lies: whether images are loaded as they lie in their files, whatever their EXIF data says.
    """
    files = list({name: (width, height) for name, width, height in sizes.values()}.items())
    found: dict[str, list] = {name: [] for name in ('lost', 'empty', 'unreadable', 'turned', 'differing', 'mirrored')}
    with ThreadPoolExecutor(16) as pool, Progress() as progress:  # for disks in a network
        headers = pool.map(lambda item: read_header(folder / item[0]), files)
        for (name, size), header in progress.track(zip(files, headers), len(files), description='images'):
            if isinstance(header, str):
                found[header].append(name)
                continue
            turns = header.orientation in LYING and not lies
            loaded: tuple[float, ...] = header.size[::-1] if turns else header.size
            if size == loaded and header.orientation > 1 and not lies and (not turns or size[0] == size[1]):
                found['mirrored'].append(name)
            elif size != loaded:
                found['turned' if size == header.size else 'differing'].append((name, size, loaded))
    if lost := found['lost']:
        raise DataError(f'image {folder / lost[0]} of {path} does not exist ({len(lost)} of {len(files)} are '
                        'missing); put it there, or change data_prefix in the config')
    if empty := found['empty']:
        raise DataError(f'image {folder / empty[0]} of {path} is empty ({len(empty)} of {len(files)} are); replace it, or '
                        'take it out of the annotations')
    for kind, reason in (('turned', 'its EXIF data has it turned when it is loaded. If annotations are for the images as they '
                          "lie in the files, set color_type='color_ignore_orientation' of LoadImageFromFile in all pipelines"),
                         ('differing', 'annotations would be in wrong places; use the images that were annotated, or scale the '
                          'annotations with them')):
        if found[kind]:
            name, size, loaded = found[kind][0]
            raise DataError(f'image {folder / name} is {loaded[0]} x {loaded[1]} pixels, but {size[0]} x {size[1]} in {path} '
                            f'({len(found[kind])} of {len(files)} differ): {reason}')
    if mirrored := found['mirrored']:
        warn_user(f'{len(mirrored)} of {len(files)} images of {path} are turned or mirrored by their EXIF data when they are '
                  f'loaded, and annotations must be for the turned image: {some(mirrored)}')


def _check_image_entries(path: Path, entries: list[dict]) -> dict[int, tuple[str, float, float]]:
    """Image id -> file name, width, height."""
    sizes: dict[int, tuple[str, float, float]] = {}
    for entry in entries:
        missing = [key for key in ('id', 'file_name', 'width', 'height') if key not in entry]
        if missing:
            raise DataError(f'image entry {entry.get("file_name", entry.get("id"))} of {path} has no {some(missing)}; add it')
        if entry['id'] in sizes:
            raise DataError(f'images {sizes[entry["id"]][0]} and {entry["file_name"]} of {path} have the same id '
                            f'{entry["id"]}, and one would get the annotations of both; give each image an id of its own')
        if not _is_numbers([entry['width'], entry['height']]):
            raise DataError(f'image {entry["file_name"]} of {path} has the width {entry["width"]} and height '
                            f'{entry["height"]}; they must be numbers')
        sizes[entry['id']] = entry['file_name'], entry['width'], entry['height']
    twice = [name for name, count in Counter(name for name, *_ in sizes.values()).items() if count > 1]
    if twice:
        warn_user(f'{len(twice)} images of {path} have more than one entry, and what is annotated in the one is background in '
                  f'the other: {some(twice)}; join them')
    return sizes


def _check_annotations(path: Path, annotations: list[dict], sizes: dict[int, tuple[str, float, float]], with_mask: bool,
                       split: str) -> list[dict]:
    """Refuse annotations that would end a run, or make it wrong; warn of those that MMDetection leaves out in silence.

    Returns:
        The others.
    """
    whole = []
    left_out: dict[str, list] = {NO_IMAGE: [], NO_AREA: [], NO_POLYGON: []}
    seen = set()
    for item in annotations:
        name = f'annotation {item.get("id")} of {path}'
        needed = ('id', 'image_id', 'bbox', 'area', *(('iscrowd', ) if split != 'train' else ()))
        missing = [key for key in needed if key not in item]
        if missing:
            raise DataError(f'{name} has no {some(missing)}; add it (iscrowd is 0 for a single thing)')
        if item['id'] in seen:
            raise DataError(f'two annotations of {path} have the id {item["id"]}; give each one of its own')
        seen.add(item['id'])
        if item['image_id'] not in sizes:
            left_out[NO_IMAGE].append(item['id'])
            continue
        file_name, width, height = sizes[item['image_id']]
        box = item['bbox']
        if not _is_numbers(box) or len(box) != 4:
            raise DataError(f'{name} (image {file_name}) has the box {box}; it must be four finite numbers: x, y, '
                            'width, height')
        if not _is_numbers([item['area']]):
            raise DataError(f'{name} (image {file_name}) has the area {item["area"]}; it must be a finite number')
        x, y, w, h = box
        # As mmdet.datasets.CocoDataset.parse_data_info does.
        if min(w, h) < 1 or item['area'] <= 0 or min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            left_out[NO_AREA].append(item['id'])
        elif with_mask and not _check_mask(item.get('segmentation'), width, height, f'{name} (image {file_name})', split):
            left_out[NO_POLYGON].append(item['id'])
        else:
            whole.append(item)
    if split != 'train' and (flat := left_out[NO_POLYGON]):
        warn_user(f'{len(flat)} of {len(annotations)} masks in {path} begin with a polygon of two points, which the evaluation '
                  f'takes for a box: {some(flat)}')
    for reason, ids in left_out.items():
        if ids and split == 'train':
            warn_user(f'{len(ids)} of {len(annotations)} annotations in {path} are left out, {reason}: {some(ids)}')
        elif ids and reason is not NO_POLYGON:
            warn_user(f'{len(ids)} of {len(annotations)} annotations in {path} are {reason}, and not as the evaluation needs '
                      f'them: scores would be wrong. Mend them, or take them out: {some(ids)}')
    _check_geometry(path, whole, sizes)
    return whole


def _check_geometry(path: Path, annotations: list[dict], sizes: dict[int, tuple[str, float, float]]) -> None:
    """Warn where many boxes reach beyond their images, or do not fit their own polygons, as those of other formats do."""
    beyond, apart, polygons = [], [], 0
    for item in annotations:
        _, width, height = sizes[item['image_id']]
        x, y, w, h = item['bbox']
        if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
            beyond.append(item['id'])
        mask = item.get('segmentation')
        if isinstance(mask, list) and mask and all(_is_numbers(polygon) and len(polygon) > 1 for polygon in mask):
            polygons += 1
            columns, rows = (sorted(number for polygon in mask for number in polygon[axis::2]) for axis in (0, 1))
            shared = (max(0, min(x + w, columns[-1] + 1) - max(x, columns[0])),
                      max(0, min(y + h, rows[-1] + 1) - max(y, rows[0])))
            area = (columns[-1] - columns[0] + 1) * (rows[-1] - rows[0] + 1)
            if 2 * shared[0] * shared[1] < max(w * h, area):
                apart.append(item['id'])
    for ids, total, what in ((beyond, len(annotations), 'reach beyond their images'),
                             (apart, polygons, 'have another place or size than their polygons')):
        if len(ids) > MOST_ODD * total:
            warn_user(f'{len(ids)} of {total} boxes in {path} {what}: bbox must be x and y of the upper left corner, width and '
                      f'height, and all of it in pixels of the image: {some(ids)}')


def _check_mask(mask: object, width: float, height: float, name: str, split: str) -> bool:
    """Whether a COCO segmentation is one that MMDetection trains on."""
    if not mask:
        raise DataError(f'{name} has no segmentation, but the pipeline loads masks; use a detector without mask head, such as '
                        'RetinaNet, or annotations with masks')
    if isinstance(mask, dict):
        if list(mask.get('size', ())) != [height, width]:
            raise DataError(f'the mask of {name} is of {mask.get("size")} pixels, height and width, but its image of '
                            f'{[height, width]}; encode it for the whole image')
        covered = sum(run_lengths(mask.get('counts', ())))
        if covered != height * width:
            raise DataError(f'the mask of {name} has run lengths of {covered} pixels, but its image has {height * width}; the '
                            'evaluation would not end, and a training would get another mask. Encode it again')
        return True
    if not (isinstance(mask, list) and all(_is_numbers(polygon) for polygon in mask)):
        raise DataError(f'the mask of {name} must be polygons, lists of finite numbers x1, y1, x2, y2 ..., or a run-length '
                        f'encoding with size and counts, got {str(mask)[:100]}')
    if split != 'train' and len(mask[0]) < 4:
        raise DataError(f'the mask of {name} begins with a polygon of {len(mask[0])} numbers, at which the evaluation would '
                        'fail; take it out')
    return (split == 'train' or len(mask[0]) > 4) and any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)


def run_lengths(counts: str | bytes | Sequence[int]) -> list[int]:
    """The run lengths of a mask in COCO's format, of which pycocotools' compressed form, text, has five bits in a letter, from
    48 on, the lowest first, and from the third on the differences to the one before the last."""
    if not isinstance(counts, (str, bytes)):
        return [int(count) for count in counts]
    lengths: list[int] = []
    value = bits = 0
    for letter in counts.encode() if isinstance(counts, str) else counts:
        value |= (letter - 48 & 31) << bits
        bits += 5
        if not letter - 48 & 32:
            value -= (letter - 48 & 16) << (bits - 4)  # the sign
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = bits = 0
    return lengths


def _is_numbers(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def some(names: Sequence) -> str:
    """The first five, and how many more."""
    return ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
