"""The tools of a checkout, wherever mmsimvit is installed: ``python -m mmsimvit get_flops ...``."""
import argparse
import runpy
import sys

from .config_files import PACKAGE

FOLDERS = PACKAGE / '.mim/tools', PACKAGE.parent / 'tools'
TOOLS = ('train', 'test', 'infer', 'visualize', 'get_flops', 'get_memory', 'benchmark', 'export_onnx', 'convert_checkpoint')
DOCTOR = 'doctor'  # of the package, for it must run where little else is


def main() -> None:
    """Run the tool that the command line names, with the rest of it."""
    parser = argparse.ArgumentParser(prog='python -m mmsimvit', description='Run a tool; each has --help.')
    parser.add_argument('tool', choices=(*TOOLS, DOCTOR))
    tool = parser.parse_args(sys.argv[1:2]).tool
    if tool == DOCTOR:
        del sys.argv[1]
        runpy.run_module('mmsimvit.doctor', run_name='__main__')
        return
    folder = next(folder for folder in FOLDERS if (folder / f'{tool}.py').is_file())
    del sys.argv[1]
    runpy.run_path(str(folder / f'{tool}.py'), run_name='__main__')


if __name__ == '__main__':
    main()
