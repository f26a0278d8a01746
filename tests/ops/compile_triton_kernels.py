"""Compile the Triton kernels for GPUs that need not be there; print the registers and spilled bytes of each as JSON.

A program of its own, because Triton decides on import whether kernels are interpreted.
"""
import json
import re
import subprocess
import tempfile
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from mmsimvit.ops import triton_kernels

KERNELS = dict(forward=triton_kernels._forward_kernel, query_gradient=triton_kernels._query_gradient_kernel,
               key_value_gradient=triton_kernels._key_value_gradient_kernel)
MAPS = {'query', 'key', 'value', 'grad', 'out', 'grad_query', 'grad_key', 'grad_value', 'bias'}


def compile_kernel(kernel, dtype, dims, kernel_size, capability, shifted=False):
    constants = dict(DIMS=dims, KERNEL_SIZE=kernel_size, SHIFTED=shifted, SCALE=dims**-0.5, DOUBLE=dtype == 'fp64',
                     **triton_kernels.tile_constants(dims))
    constants |= {} if shifted or 'bias' not in kernel.arg_names else dict(bias=None)
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: f'*{dtype}' if name in MAPS else '*fp32' if name == 'scores' else 'i32' for name in names}
    signature |= dict.fromkeys(constants, 'constexpr')
    # What Triton finds out about the arguments of a call: addresses and strides that divide by 16, so that loads are wide.
    wide = {(index, ): [['tt.divisibility', 16]] for index, name in enumerate(kernel.arg_names)
            if name in MAPS or name.endswith(('_b', '_h', '_w'))}
    source = ASTSource(kernel, signature, constants, wide)
    return triton.compile(source, GPUTarget('cuda', capability, 32), dict(num_warps=triton_kernels.NUM_WARPS))


def assembler(capability):
    """The one that Triton takes for this GPU: from 3.6 on it has two, and the older does not read what is for the newer."""
    nvidia = triton.knobs.nvidia
    return (get_ptxas(capability) if hasattr(nvidia, 'ptxas_blackwell') else nvidia.ptxas).path


def resources(compiled, capability):
    with tempfile.NamedTemporaryFile('w', suffix='.ptx') as file:
        file.write(compiled.asm['ptx'])
        file.flush()
        command = [assembler(capability), '-v', f'--gpu-name=sm_{capability}{"a" if capability == 90 else ""}', file.name,
                   '-o', '/dev/null']
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r'(\d+) bytes spill', report)))
    return dict(registers=int(re.search(r'Used (\d+) registers', report)[1]), spilled_bytes=spilled,
                wide_loads=compiled.asm['ptx'].count('.v4.b32'))


if __name__ == '__main__':
    found = {}
    for (capability, dtype), dims, (name, kernel) in product(((80, 'fp32'), (90, 'bf16')), (32, 64), KERNELS.items()):
        compiled = compile_kernel(kernel, dtype, dims, 3, capability)
        found[f'{name} sm_{capability} {dtype} {dims}'] = resources(compiled, capability)
        if dims == 32:
            compiled = compile_kernel(kernel, dtype, dims, 7, capability, shifted=True)
            found[f'shifted {name} sm_{capability} {dtype} {dims}'] = resources(compiled, capability)
    print(json.dumps(found, indent=1))
