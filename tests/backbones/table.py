"""The backbones that the tests of this folder are about, out of their golden files."""
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from mmsimvit.weights import find_systems
from tests import golden

SYSTEMS = find_systems()
GOLDEN = {system: golden.load(system) for system in SYSTEMS}


class Row(NamedTuple):
    """A small variant of a backbone."""
    build: partial  # makes it, from the arguments of the class
    depths: dict[str, int]  # of some parameters, by their names
    overlapping: bool = False  # whether its first convolution overlaps: pixels beyond the border are then not zeros
    rounds_up: bool = True  # whether its maps have ceil(H / stride) rows; a stem that rounds down has one less at times
    steady: Mapping[str, Any] = {}  # arguments with which rounding decides nothing, of backbones that take decisions


BACKBONES = {name: Row(partial(SYSTEMS[system], row.pop('arch')), **row)
             for system, known in GOLDEN.items() for name, row in known['small'].items()}


def arch_of(system, variant):
    """What makes the backbone of a golden variant: a published name, and what differs from it."""
    name, changes = GOLDEN[system].get('changes', {}).get(variant, (variant, {}))
    return partial(SYSTEMS[system], name, **changes)
