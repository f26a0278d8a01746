"""A part of MMDetection's detectors; importing it needs MMDetection."""
import torch
from mmdet.models import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Float32RoIExtractor(SingleRoIExtractor):
    """RoI features in float32, whatever autocast says: MMCV 2.1 has no RoIAlign in bfloat16, whose 8 bits would also move boxes
    by pixels."""

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Maps ``(B, C, H, W)`` and boxes ``(N, 5)`` -> ``(N, C, size, size)``, float32."""
        with torch.autocast(rois.device.type, enabled=False):
            return super().forward([x.float() for x in feats], rois.float(), roi_scale_factor)
