"""Reading checkpoints safely, and finding the names and tensors in them."""
import difflib
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner.checkpoint import CheckpointLoader

from ..errors import CheckpointError

# Where training tools put the weights; averaged weights are what published accuracies were measured with.
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')


def unwrap(checkpoint: Mapping) -> Mapping:
    """The innermost mapping of names to tensors.

    Raises:
        ValueError: for what is no mapping.
    """
    while isinstance(checkpoint, Mapping):
        inner = next((checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            return checkpoint
        checkpoint = inner
    raise ValueError(f'a checkpoint must be a mapping of names to tensors, got {type(checkpoint).__name__}')


def as_mmengine_reads(checkpoint: Mapping) -> Mapping:
    """The names and tensors that mmengine's loading will look at, which knows one wrapper only."""
    return checkpoint.get('state_dict', checkpoint)


def strip_module(state_dict: Mapping) -> dict:
    """Names without the ``module.`` that data-parallel wrappers put before them."""
    return {name.removeprefix('module.'): value for name, value in state_dict.items()}


def strip_prefix(state_dict: Mapping) -> dict:
    """Names without ``module.``; if any begins with ``backbone.``, only those, without it, and so with what Detectron2
    has inside of it, ``bottom_up.`` beside the neck, and ``model.`` where that is wrapped."""
    names = strip_module(state_dict)
    for prefix in ('backbone.', 'bottom_up.', 'model.'):
        names = {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)} or names
    return names


def load_file(path: str) -> Mapping:
    """Read a checkpoint that may come from a stranger: tensors and plain containers only, no code is run.

    Raises:
        CheckpointError: if it is missing, broken or holds anything else.
    """
    try:
        if path.endswith('.safetensors'):
            checkpoint = _read_safetensors(_download(path) if '://' in path else path)
        elif '://' in path:
            with _only_weights():
                checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        else:
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        others = sorted(other.name for other in Path(path).parent.glob('[!.]*.*'))  # those with a dot are not whole
        beside = difflib.get_close_matches(Path(path).name, others)
        raise CheckpointError(f'checkpoint {path} does not exist'
                              + (f'; near to it: {", ".join(beside)}' if beside else '')) from None
    except pickle.UnpicklingError as error:
        found = re.search(r'(?:GLOBAL|class|Unsupported \w+) ([A-Za-z_][\w.]*)', str(error))
        raise CheckpointError(f'checkpoint {path} is refused: it holds more than tensors'
                              f'{f" ({found[1]})" if found else ""} and could run code when loaded, or it is no '
                              'checkpoint at all; ask whoever made it for the state dict alone') from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'checkpoint {path} cannot be read; it may have been cut short, or be no checkpoint of PyTorch '
                              f'({type(error).__name__}: {(str(error).splitlines() or [""])[0]})') from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f'checkpoint {path} holds a {type(checkpoint).__name__}, not names and tensors')
    return checkpoint


def _download(url: str) -> str:
    """Once, by the first process, to where torch keeps what it downloads."""
    path = Path(torch.hub.get_dir(), 'checkpoints', url.rpartition('/')[2])
    if is_main_process() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    barrier()
    return str(path)


def _read_safetensors(path: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as read
    except ImportError:
        raise CheckpointError(f'{path} is read by safetensors, which is not installed: pip install safetensors') from None
    try:
        return read(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


@contextmanager
def _only_weights() -> Iterator[None]:
    """torch.hub, which mmengine's downloads go through, asks for ``weights_only=False``; this overrules it."""
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(name)
    os.environ[name] = '1'
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
