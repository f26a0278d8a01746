"""Export a backbone, a backbone with its neck, or a whole classifier or segmentor to ONNX, for images of any size.

The input is called images: (batch, 3, height, width), float32, normalised. The preprocessing is not part of the file, whose
metadata has mean, std and the order of the channels; images = (pixels of 0 to 255 - mean) / std. The outputs are called
features_0, features_1 ... for the maps of a backbone or neck; logits for the class scores, before softmax, of a classifier,
(batch, classes), or of each pixel by a segmentor, (batch, classes, height, width). Batch, height and width are free.

Where onnxruntime is installed, its numbers are compared with PyTorch's, at the traced size and at another, before the file
gets its name.
"""
import argparse
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from ..analysis.export import INSTALL, PARTS, Exportable, compare, describe, export_onnx
from ..errors import ModelError
from ..models import build_model
from .config import add_options, at_least_one, load_config
from .errors import one_line_errors

TOLERANCE = 1e-3  # relative to the spread of the outputs


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    add_options(parser)
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file, of the whole model or of the exported part; without '
                        "it, the weights are those that the config's training starts from")
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='the ONNX file to write')
    parser.add_argument('--part', choices=PARTS, default='model', help='what to export (default: %(default)s)')
    parser.add_argument('--shape', nargs=2, type=at_least_one, default=[224, 224], metavar=('H', 'W'),
                        help='height and width of the image that is traced (default: 224 224)')
    parser.add_argument('--static', action='store_true',
                        help='let the file take one image of --shape alone, for runtimes that want to know')
    return parser.parse_args(argv)


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Export what a command line asks for.

    Raises:
        ModelError: if ONNX Runtime computes something else.
    """
    args = parse_args(argv)
    if args.out.suffix != '.onnx':
        sys.exit(f'error: --out writes an ONNX file, so its name must end in .onnx, got {args.out}')
    if not (find_spec('onnx') and find_spec('onnxscript')):
        sys.exit(f'error: the export needs packages that are not installed; {INSTALL}')
    warnings.filterwarnings('ignore')  # of the exporter, about itself
    cfg = load_config(args)
    model = build_model(cfg)
    exportable = Exportable(model, args.part).eval()
    metadata = dict(describe(exportable), config=Path(args.config).name)
    if args.checkpoint:
        classes = (exportable.load_weights(args.checkpoint).get('dataset_meta') or {}).get('classes')
        if classes:
            metadata['classes'] = classes
    else:
        model.init_weights()
        print('WARNING: no checkpoint is given, so the weights are those that training starts from, random ones perhaps')
    if args.part == 'model' and (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        print("the file takes images as a whole; the sliding window of the config's test_cfg is not part of it")

    def check(path: Path) -> None:
        if not find_spec('onnxruntime'):
            print('not compared with PyTorch: onnxruntime is not installed; pip install onnxruntime')
            return
        height, width = args.shape
        shapes = [(1, height, width)] if args.static else [(2, height, width), (1, height + 37, width + 50)]
        for shape, difference in zip(shapes, compare(exportable, path, shapes)):
            print(f'{" x ".join(map(str, shape[1:]))} pixels, batch {shape[0]}: ONNX Runtime differs from PyTorch by at most '
                  f'{difference:.1e} of the spread of the outputs')
            if not difference < TOLERANCE:
                raise ModelError(f'{args.out} is not written: ONNX Runtime computes other numbers than PyTorch')

    print('tracing and converting; a minute or more for deep models', flush=True)
    export_onnx(exportable, args.out, tuple(args.shape), args.static, metadata, check)
    print(f'written to {args.out}, {args.out.stat().st_size / 2**20:.1f} MiB')
