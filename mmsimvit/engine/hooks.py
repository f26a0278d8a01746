from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS

from ..checkpoints import CheckpointError, as_mmengine_reads, match, strip_module


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Refuse a checkpoint that gives nothing to the model, which mmengine would only warn of; report a partial one.

    Raises:
        CheckpointError: if no parameter of the model is in the checkpoint in its shape, or, to resume from, not all are.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        found = match(model, strip_module(as_mmengine_reads(checkpoint)))
        if found.matched == 0:
            raise CheckpointError(f'checkpoint {runner._load_from} gives none of the {found.total} parameters of '
                                  f'{type(model).__name__}: {found.problems()}; is it of this config?')
        if runner._resume and not found.complete:
            raise CheckpointError(f'cannot resume from checkpoint {runner._load_from}: it gives {found.matched} of '
                                  f'{found.total} parameters; {found.problems()}; is it of this config?')
        log = runner.logger.info if found.complete else runner.logger.warning
        log(f'the checkpoint gives {found.matched} of {found.total} parameters'
            f'{"" if found.complete else "; " + found.problems()}')
