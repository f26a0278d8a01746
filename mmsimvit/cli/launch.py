"""The processes that a launcher starts: joining them, and what a CPU cannot do in several."""
import atexit
import gc
import os
import subprocess
import time
from datetime import timedelta

import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log

from ..engine.fsdp import SHARDED_STRATEGY
from ..models import find_dicts

# What tells a process its place, by launcher: its number, how many there are, its number on this machine.
LAUNCHER_ENV = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'tools/dist_train.sh'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'tools/slurm_train.sh'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun'),
}


def init_dist(cfg: Config) -> None:
    """Check that a launcher started this process; without an accelerator, join the others through gloo.

    mmengine joins them itself where there is one, and fails where there is none.

    Raises:
        SystemExit: if the launcher named did not start this process.
    """
    if cfg.launcher == 'none':
        return
    rank, world_size, local_rank, starter = LAUNCHER_ENV[cfg.launcher]
    if rank not in os.environ or world_size not in os.environ:
        raise SystemExit(f'error: --launcher {cfg.launcher} is for processes that {starter} starts, which would set {rank} and '
                         f'{world_size}; start it with that, or leave out --launcher')
    os.environ.update(RANK=os.environ[rank], WORLD_SIZE=os.environ[world_size], LOCAL_RANK=os.environ.get(local_rank, '0'))
    if get_device() == 'mps':
        raise SystemExit('error: several processes cannot share the GPU of this machine (MPS); leave out --launcher')
    if get_device() != 'cpu' or torch.distributed.is_initialized():
        return
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        nodes = subprocess.run(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], check=True, text=True,
                               capture_output=True).stdout
        os.environ['MASTER_ADDR'] = nodes.split()[0]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    timeout = (cfg.get('env_cfg') or {}).get('dist_cfg', {}).get('timeout', 1800)
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout))
    # The threads of gloo end with the last object that holds the group, which is the wrapped model; one that frees a tensor
    # while Python shuts down would abort the process.
    atexit.register(gc.collect)
    _run_on_cpu(cfg)


def cleanup_dist() -> None:
    """End what the processes talk through, whose threads may otherwise outlive what they work on."""
    if torch.distributed.is_initialized():
        # While torch 2.6 waits for gloo's threads here, it keeps from them the lock that they need to free what the last
        # collective gathered, and waits for ever; sleeping gives it to them.
        time.sleep(0.1)
        torch.distributed.destroy_process_group()


def _run_on_cpu(cfg: Config) -> None:
    """Take out of a config what a CPU cannot do in several processes: devices by number, and synchronized batch norm."""
    strategy = cfg.get('strategy')
    if strategy and strategy.type == SHARDED_STRATEGY:
        strategy.setdefault('model_wrapper', ConfigDict()).setdefault('type', 'MMFullyShardedDataParallel')
        strategy.model_wrapper.device_id = 'cpu'
        if strategy.get('state_dict_cfg') == 'full':  # without moving to the CPU what is there, which torch 2.11 frees then
            strategy.state_dict_cfg = ConfigDict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', rank0_only=True, offload_to_cpu=False),
                optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True, offload_to_cpu=False))
    else:
        place = strategy or cfg
        wrapper = ConfigDict(type='MMDistributedDataParallel', broadcast_buffers=False)
        if cfg.get('find_unused_parameters'):
            wrapper.find_unused_parameters = True
        wrapper.update(place.get('model_wrapper' if strategy else 'model_wrapper_cfg') or {})
        wrapper.device_ids = None
        place['model_wrapper' if strategy else 'model_wrapper_cfg'] = wrapper
    if cfg.get('sync_bn'):
        cfg.sync_bn = None
    replaced = [part for part in find_dicts(cfg.get('model')) if part.get('type') in ('SyncBN', 'MMSyncBN')]
    for part in replaced:
        part['type'] = 'BN'
    if replaced:
        print_log(f'no accelerator: {len(replaced)} SyncBN in the config became BN, each process normalises by itself',
                  'current')
