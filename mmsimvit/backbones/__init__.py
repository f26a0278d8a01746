"""One paper, one file; ``base`` holds the contract that all of them keep, ``pyramid`` what those of several stages share,
``plain`` what those of one resolution share."""
from .base import Backbone, FeatureInfo, Layer
from .cmt import CMT
from .cswin import CSWin
from .cvt import CvT
from .dat import DAT
from .dwnet import DWNet
from .dynamicconvnext import DynamicConvNeXt
from .dynamicswin import DynamicSwin
from .dynamicvit import DynamicViT
from .gcvit import GCViT
from .gpvit import GPViT
from .hatnet import HATNet
from .lit import LIT
from .mpvit import MPViT
from .msgtransformer import MSGTransformer
from .p2t import P2T
from .plain import PlainBackbone
from .pyramid import PyramidBackbone
from .regionvit import RegionViT
from .resformer import ResFormer
from .scalablevit import ScalableViT
from .shunted import Shunted
from .simvit import SimViT
from .uvit import UViT

__all__ = ['CMT', 'DAT', 'LIT', 'P2T', 'Backbone', 'CSWin', 'CvT', 'DWNet', 'DynamicConvNeXt', 'DynamicSwin', 'DynamicViT',
           'FeatureInfo', 'GCViT', 'GPViT', 'HATNet', 'Layer', 'MPViT', 'MSGTransformer', 'PlainBackbone', 'PyramidBackbone',
           'RegionViT', 'ResFormer', 'ScalableViT', 'Shunted', 'SimViT', 'UViT']
