"""Checkpoints: read safely, recognised, converted and matched. What is known of a system is in its backbone's file."""
from ..errors import CheckpointError
from .files import as_mmengine_reads, load_file, strip_module, strip_prefix, unwrap
from .matching import Match, match, match_checkpoint
from .published import Published, convert_head, convert_state_dict, find_arch, find_systems, stage_before
from .recognise import recognise

__all__ = ['CheckpointError', 'Match', 'Published', 'as_mmengine_reads', 'convert_head', 'convert_state_dict', 'find_arch',
           'find_systems', 'load_file', 'match', 'match_checkpoint', 'recognise', 'stage_before', 'strip_module',
           'strip_prefix', 'unwrap']
