import torch.nn.functional as F
from torch import Tensor, nn


class FFN(nn.Module):
    """Feed-forward network of each pixel: two linear layers with GELU (its exact form) between them.

    Args:
        dims, hidden_dims: channels of input and output, and between the layers.
    """

    def __init__(self, dims: int, hidden_dims: int):
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        return self.fc2(F.gelu(self.fc1(x)))
