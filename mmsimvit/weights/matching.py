"""How a state dict fits a model."""
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import CheckpointError
from .files import as_mmengine_reads, strip_module


class Match(NamedTuple):
    """How a state dict fits a backbone: numbers of parameters, and the names that do not fit."""
    total: int
    matched: int
    missing: list[str]
    reshaped: list[str]  # with both shapes
    unused: list[str]
    added: list[str]  # missing too, and rightly: norms of maps that classifiers lack
    resampled: list[str]  # tables of positions, or kernels, of another size: they fit, an optimizer's state does not

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, of another shape or unused."""
        return not (self.missing or self.reshaped or self.unused)

    @property
    def predicts(self) -> bool:
        """Whether all that predictions take is there.

        An auxiliary head is for training, and published checkpoints are often without; so are counts of batches.
        """
        return not self.reshaped and all(name.startswith('auxiliary_head') or name.endswith('num_batches_tracked')
                                         for name in self.missing)

    def check_any(self, checkpoint: object, model: nn.Module) -> str:
        """Refuse a checkpoint that gives nothing.

        Args:
            checkpoint: its path, for the message.
            model: what it is for.

        Returns:
            One line that says how much it gives.

        Raises:
            CheckpointError: if no parameter of the model is in it in its shape.
        """
        if self.matched == 0:
            raise CheckpointError(f'checkpoint {checkpoint} gives none of the {self.total} parameters of '
                                  f'{type(model).__name__}: {self.problems()}; is it of this config?')
        line = f'the checkpoint gives {self.matched} of {self.total} parameters'
        return line if self.complete else f'{line}; {self.problems()}'

    def check_predictions(self, checkpoint: str, model: nn.Module) -> None:
        """Refuse a checkpoint with which predictions would be random in part.

        Args:
            checkpoint: its path, for the message.
            model: what it is for.

        Raises:
            CheckpointError: unless it ``predicts``.
        """
        if not self.predicts:
            raise CheckpointError(f'checkpoint {checkpoint} gives {self.matched} of the {self.total} parameters of '
                                  f'{type(model).__name__}; {self.problems()}; is it of this config? If the rest may be '
                                  'random, or is renamed or resized when it is loaded: --allow-partial')

    def problems(self) -> str:
        """One line that names at most three of each kind."""
        kinds = (('missing', self.missing), ('of another shape', self.reshaped), ('not used', self.unused))
        return '; '.join(f'{len(names)} {kind} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
                         for kind, names in kinds if names)


def match(backbone: nn.Module, state_dict: Mapping[str, Tensor]) -> Match:
    """Compare the names and shapes of a backbone with those of a state dict, after the resampling that loading does."""
    ours, given, state_dict = backbone.state_dict(), state_dict, dict(state_dict)
    for prefix, module in backbone.named_modules():
        if hasattr(module, 'fit_state_dict'):
            module.fit_state_dict(state_dict, prefix.replace('_fsdp_wrapped_module.', '') + '.')
    resampled = [name for name in ours if name in given and state_dict[name] is not given[name]
                 and state_dict[name].shape != given[name].shape]
    missing = [name for name in ours if name not in state_dict]
    added = []
    for layer in getattr(backbone, 'layer_order', list)():
        for prefix in layer.prefixes if layer.is_added else ():
            part = [name for name in ours if f'{name}.'.startswith(f'{prefix}.')]
            added += part if set(part) <= set(missing) else []  # in part, it was cut out of a detector's
    reshaped = [f'{name}: {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}' for name, tensor in ours.items()
                if name in state_dict and state_dict[name].shape != tensor.shape]
    unused = [name for name in state_dict if name not in ours]
    return Match(len(ours), len(ours) - len(missing) - len(reshaped), [name for name in missing if name not in added],
                 reshaped, unused, added, resampled)


def match_checkpoint(model: nn.Module, checkpoint: Mapping) -> Match:
    """How what mmengine's loading finds in a checkpoint fits a model."""
    return match(model, strip_module(as_mmengine_reads(checkpoint)))
