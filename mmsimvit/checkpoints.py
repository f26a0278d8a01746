"""What was here before ``mmsimvit.weights``, for code that imports it from here."""
from typing import NamedTuple

from . import backbones  # noqa: F401  which registers them
from .weights import (
    CheckpointError,
    Match,
    as_mmengine_reads,
    convert_state_dict,
    find_arch,
    find_systems,
    load_file,
    match,
    strip_module,
    strip_prefix,
    unwrap,
)

__all__ = ['SYSTEMS', 'CheckpointError', 'Match', 'System', 'as_mmengine_reads', 'convert_state_dict', 'find_arch',
           'load_file', 'match', 'strip_module', 'strip_prefix', 'unwrap']


class System(NamedTuple):
    """A published system in short; its backbone's ``published`` says all."""
    backbone: str  # our registered name
    source: str  # where the weights were published
    released: tuple[str, ...]  # the variants that have published weights


SYSTEMS = {name: System(kind.__name__, kind.published.url, kind.published.released)
           for name, kind in find_systems().items()}
