"""Masks of point-wise spatial attention (PSANet, Zhao et al., ECCV 2018)."""
import torch
from torch import Tensor


def place_of_entries(h_feature: int, w_feature: int, h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int,
                     device: torch.device) -> tuple[Tensor, Tensor]:
    """For each pair of pixels, the entry of the first's mask that lies over the second, and whether there is one.

    Returns:
        Two tensors ``(second pixels, H, W)``: numbers of entries, and booleans.
    """
    def along(size: int, mask: int, half: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(size, device=device)
        entries = positions[:, None] - positions + half
        return entries, (entries >= 0) & (entries < mask)

    rows, row_is_there = along(h_feature, h_mask, half_h_mask)
    columns, column_is_there = along(w_feature, w_mask, half_w_mask)
    entries = rows[:, None, :, None] * w_mask + columns[None, :, None, :]
    is_there = row_is_there[:, None, :, None] & column_is_there[None, :, None, :]
    shape = h_feature * w_feature, h_feature, w_feature
    return entries.masked_fill(~is_there, 0).view(shape), is_there.view(shape)


def psamask_forward(input: Tensor, output: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int, h_mask: int,
                    w_mask: int, half_h_mask: int, half_w_mask: int) -> None:
    """Spread each pixel's mask, which is centred on it, over the map.

    Args:
        input: ``(B, h_mask w_mask, H, W)``.
        output: ``(B, H W, H, W)``. In type 0 (collect) the second index is the other pixel and the last two are the mask's
            own pixel; in type 1 (distribute) it is the other way round.
    """
    entries, is_there = place_of_entries(h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask, input.device)
    spread = input.gather(1, entries.expand(num_, -1, -1, -1)).masked_fill(~is_there, 0)
    output.copy_(spread if psa_type == 0 else spread.flatten(2).transpose(1, 2).view_as(output))


def psamask_backward(grad_output: Tensor, grad_input: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int,
                     h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int) -> None:
    """Write the gradient of ``psamask_forward``, ``(B, h_mask w_mask, H, W)``."""
    if psa_type == 1:
        grad_output = grad_output.flatten(2).transpose(1, 2).view_as(grad_output)
    entries, is_there = place_of_entries(h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask, grad_output.device)
    # An entry lies over one pixel at most, so that nothing is summed but zeros of entries that are not there.
    grad_input.zero_().scatter_add_(1, entries.expand(num_, -1, -1, -1), grad_output.masked_fill(~is_there, 0))


OPERATORS = psamask_forward, psamask_backward
