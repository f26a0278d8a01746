"""What operators of other libraries can compute with."""
import torch
from torch import Tensor

FAR = 1e6  # pixels or maps, beyond all of them


def widen(x: Tensor) -> Tensor:
    """Numbers of 16 bits as float32, all else as it is, in any shape."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def split_finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Places in a map with which torchvision computes, of 32 bits or more, and zeros that are NaN where the places are, in the
    shape of what is given.

    torchvision takes NaN as the index of a pixel, which ends the process. The zeros are added to what comes out. What is
    infinite lies far outside.
    """
    x = widen(x)
    return x.nan_to_num(0).clamp(-FAR, FAR), torch.where(x.isnan(), x, 0)
