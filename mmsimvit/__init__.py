"""SimViT and its sibling pyramid vision transformers as backbones for MMDetection, MMSegmentation and MMPreTrain.

Importing this package changes elsewhere:

- mmengine's root registries get its backbones, its neck, data set and hooks, and what it has of optimizer wrappers and FSDP
  strategies;
- ``torch.ops`` gets the operators ``mmsimvit::...``;
- ``torch.load(weights_only=True)`` accepts what mmengine's training checkpoints hold beside tensors, and the fork of mmengine
  reads checkpoints so, and not without any check (``engine.allow_training_checkpoints``);
- Python finds an ``mmcv._ext`` where mmcv was not compiled (``mmcv_ops.install``).

The commands change more for their own process: ``train`` has checkpoints written whole (``engine.work_dir``).
"""
import importlib.util
import sys

# `python -m mmsimvit doctor` imports this package first, and is for environments in which torch or mmengine do not load.
if not (sys.argv[:1] == ['-m'] and '-m mmsimvit doctor' in ' '.join(sys.orig_argv).replace('.', ' ')):
    for needed in ('torch', 'mmengine'):
        if importlib.util.find_spec(needed) is None:
            raise ModuleNotFoundError(f'mmsimvit needs {needed}, which is not installed; python -m mmsimvit doctor has the '
                                      'commands for all that is missing', name=needed)
    import torch
    from mmengine.utils import digit_version

    if digit_version(torch.__version__) < digit_version('2.6'):
        raise ImportError(f'mmsimvit needs torch 2.6 or later, for safe loading of checkpoints; this is {torch.__version__}')

    from . import mmcv_ops
    from .backbones import (
        CMT,
        DAT,
        LIT,
        P2T,
        CSWin,
        CvT,
        DWNet,
        DynamicConvNeXt,
        DynamicSwin,
        DynamicViT,
        GCViT,
        GPViT,
        HATNet,
        MPViT,
        MSGTransformer,
        PlainBackbone,
        PyramidBackbone,
        RegionViT,
        ResFormer,
        ScalableViT,
        Shunted,
        SimViT,
        UViT,
    )
    from .checkpoints import CheckpointError, convert_state_dict
    from .config_files import ConfigError, copy_config, find_config
    from .datasets import DataError, generate_shapes
    from .engine import allow_training_checkpoints
    from .necks import QueryPooling, SimpleFeaturePyramid

    allow_training_checkpoints()
    mmcv_ops.install()

__version__ = '0.1.0'
__all__ = ['CMT', 'DAT', 'LIT', 'P2T', 'CSWin', 'CheckpointError', 'ConfigError', 'CvT', 'DWNet', 'DataError',
           'DynamicConvNeXt', 'DynamicSwin', 'DynamicViT', 'GCViT', 'GPViT', 'HATNet', 'MPViT', 'MSGTransformer',
           'PlainBackbone', 'PyramidBackbone', 'QueryPooling', 'RegionViT', 'ResFormer', 'ScalableViT', 'Shunted', 'SimViT',
           'SimpleFeaturePyramid', 'UViT', 'convert_state_dict', 'copy_config', 'find_config', 'generate_shapes']
