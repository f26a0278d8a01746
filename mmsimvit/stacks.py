"""The two OpenMMLab stacks that mmsimvit runs on, and all that it does differently for one of them.

The standard library alone, so that the doctor can use it where nothing else loads. Versions are those that mmsimvit is tested
on: requirements.txt, requirements-onedl.txt.
"""
import importlib.metadata

# What is imported, and what brings it.
TORCH = {'torch': 'torch==2.11.0', 'torchvision': 'torchvision==0.26.0'}
UPSTREAM = TORCH | {'mmengine': 'mmengine==0.10.7', 'mmcv': 'mmcv-lite==2.1.0', 'mmdet': 'mmdet==3.3.0',
                    'mmseg': 'mmsegmentation==1.2.2', 'mmpretrain': 'mmpretrain==1.2.0'}
# Maintained forks, which keep the names of the modules.
ONEDL = TORCH | {'mmengine': 'onedl-mmengine==0.10.12', 'mmcv': 'onedl-mmcv==2.3.6', 'mmdet': 'onedl-mmdetection==3.5.1',
                 'mmseg': 'onedl-mmsegmentation==1.4.2', 'mmpretrain': 'onedl-mmpretrain==1.3.6'}


def name_of(requirement: str) -> str:
    """The name alone of a requirement such as ``mmdet==3.3.0``."""
    return requirement.split('==')[0]


def stack_of(distributions: set[str]) -> dict[str, str]:
    """The stack that most of these distributions, by name, are of; the upstream one if there is nothing of either."""
    counts = [len(distributions & set(map(name_of, stack.values()))) for stack in (UPSTREAM, ONEDL)]
    return ONEDL if counts[1] > counts[0] else UPSTREAM


def installed_stack() -> dict[str, str]:
    """The stack of this environment."""
    return stack_of({str(found.metadata['Name']).lower() for found in importlib.metadata.distributions()})


def read_checkpoints_as_torch_does() -> None:
    """Have the fork of mmengine read a checkpoint with the classes that are allowed, and with nothing else.

    It allows every use of ``getattr`` while it reads, takes its list back afterwards, and with it what others had allowed,
    and reads a file that was refused once more without any check.
    """
    import torch
    from mmengine.runner import checkpoint
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = torch.load
