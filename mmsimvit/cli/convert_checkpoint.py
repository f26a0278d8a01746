"""Convert a published checkpoint to our names.

init_cfg=dict(type='Pretrained', checkpoint=...) loads a published file as it is, too. The written one says at once whether all
of it is there, and keeps a classifier's head on request.
"""
import argparse
import io

import torch

from ..errors import CheckpointError
from ..files import atomic_write
from ..weights import convert_head, convert_state_dict, find_arch, find_systems, load_file
from .errors import one_line_errors


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Convert what a command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='published checkpoint of a classifier or detector')
    parser.add_argument('dst', help='file to write')
    parser.add_argument('--system', required=True, choices=sorted(find_systems()),
                        help='the backbone whose published weights these are')
    parser.add_argument('--with-head', action='store_true',
                        help="keep a classifier's head: a file for the test tool and our ImageNet config")
    args = parser.parse_args(argv)
    convert(args.src, args.dst, args.system, args.with_head)


def convert(src: str, dst: str, system: str, with_head: bool = False) -> None:
    """Write ``dst`` if ``src`` has every parameter of one published variant and no other.

    With ``with_head`` it is the checkpoint of a classifier, or else of a backbone alone.

    Raises:
        CheckpointError: otherwise.
        WriteError: if ``dst`` cannot be written.
    """
    try:
        checkpoint = load_file(src)
        state_dict = convert_state_dict(system, checkpoint)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f'{src}: {error}') from error
    arch, found = find_arch(system, state_dict)
    print(f'{src}: {found.matched} of {found.total} parameters of {find_systems()[system].__name__} {arch} matched')
    if not found.complete:
        raise CheckpointError(f'{src} is no published {system}; nearest to it is {arch}: {found.problems()}')
    if found.added:
        print(f'{len(found.added)} parameters that such a checkpoint lacks ({found.added[0]} ...) will start anew')
    if with_head:
        try:
            head = convert_head(system, arch, checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f'{src}: {error}; without --with-head, the backbone alone is converted') from error
        state_dict = {**{f'backbone.{name}': tensor for name, tensor in state_dict.items()}, **head}
    content = io.BytesIO()  # for torch's own writing to a full disk does not say what is wrong
    torch.save(dict(state_dict=state_dict, meta=dict(system=system, arch=arch)), content)
    atomic_write(dst, lambda unfinished: unfinished.write_bytes(content.getbuffer()))
    print(f'written to {dst}' + ('' if with_head else f': init_cfg=dict(type=\'Pretrained\', checkpoint={dst!r})'))
