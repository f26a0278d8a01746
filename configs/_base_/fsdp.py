# Fully sharded data parallel training: a second base beside any config here, for models that do not fit otherwise. Each
# block of the backbone is a unit; checkpoints are whole, as those of a plain run. See docs/clusters.md.
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy='mmsimvit.engine.wrap_blocks'))
