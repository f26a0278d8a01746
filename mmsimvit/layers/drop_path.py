from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop the residual branch of whole samples while training (Deep Networks with Stochastic Depth, 1603.09382).

    Args:
        drop_prob: probability with which a sample's branch is dropped, in [0, 1); the kept ones are divided by
            ``1 - drop_prob``, so that the expectation stays.
    """

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...)`` -> ``(B, ...)``."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        return x * x.new_empty(x.shape[:1] + (1, ) * (x.dim() - 1)).bernoulli_(keep_prob).div_(keep_prob)

    def extra_repr(self) -> str:
        """What ``print`` says of it."""
        return f'drop_prob={self.drop_prob:.3f}'
