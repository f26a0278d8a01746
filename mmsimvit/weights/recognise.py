"""Finding the parameters of a backbone in a checkpoint of any layout."""
from collections import Counter
from collections.abc import Callable, Mapping, Set

from torch import Tensor

from ..errors import CheckpointError
from .files import unwrap
from .published import Published

PREFERRED = ('', 'module.', 'backbone.', 'module.backbone.')  # where a file has the same names more than once


def recognise(checkpoint: Mapping, ours: Set[str], published: Published | None,
              prefix: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Find a backbone's parameters, by our names or the published ones, inside of any wrapper and behind any prefix.

    Args:
        checkpoint: what a file holds.
        ours: our names.
        published: what turns published names into ours; None if nothing was published.
        prefix: what stands before the names; sought if None.

    Returns:
        Our names, and those that are neither, to the tensors behind the prefix; and in words what they were in the file.

    Raises:
        CheckpointError: if they are there more than once.
    """
    tensors = {name: tensor for name, tensor in unwrap(checkpoint).items() if isinstance(tensor, Tensor)}
    layouts: dict[str, Callable[[Mapping], dict]] = {'our names': dict}
    if published:
        layouts['published names'] = published.convert
    prefixes = _find_prefixes(tensors, len(ours)) if prefix is None else [f'{prefix.rstrip(".")}.' if prefix else '']
    best = -1
    for layout, convert in layouts.items():
        for known in prefixes:
            converted = convert({name[len(known):]: tensor for name, tensor in tensors.items() if name.startswith(known)})
            count = len(ours & converted.keys())
            if count > best:
                best, found, at, words, others = count, converted, known, layout, []
            elif count == best > 0 and layout == words:
                others.append(known)
    if others and at not in PREFERRED:
        raise CheckpointError(f"it holds the backbone more than once, behind {', '.join(map(repr, [at, *others]))}; name "
                              f"one: init_cfg=dict(type='Pretrained', checkpoint=..., prefix={at!r})")
    return found, f'{words} behind {at!r}' if at else words


def _find_prefixes(names: Mapping[str, Tensor], count: int) -> list[str]:
    """Those that stand before enough names to be a backbone's with so many parameters, or with half of them."""
    counts = Counter(name[:end + 1] for name in names for end, letter in enumerate(name) if letter == '.')
    found = [prefix for prefix, number in counts.items() if 2 * number >= count]
    return [*PREFERRED, *(prefix for prefix in found if prefix not in PREFERRED)]
