"""The commands, wherever mmsimvit is installed: ``python -m mmsimvit get_flops ...``."""
import argparse
import importlib
import sys

COMMANDS = ('train', 'test', 'infer', 'visualize', 'swap', 'compare', 'get_flops', 'get_memory', 'benchmark', 'export_onnx',
            'convert_checkpoint', 'demo', 'doctor', 'gpu_check')


def main() -> None:
    """Run the command that the first word names, with the rest of the words."""
    parser = argparse.ArgumentParser(prog='python -m mmsimvit', description='Run a command; each has --help.')
    parser.add_argument('command', choices=COMMANDS)
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv = [f'python -m mmsimvit {command}', *sys.argv[2:]]  # the first is what --help shows
    importlib.import_module(f'mmsimvit.cli.{command}').main()


if __name__ == '__main__':
    main()
