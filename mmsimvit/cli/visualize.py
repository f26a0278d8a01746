"""Draw what a detector, segmentor or classifier makes of an image: feature maps, the attention of a pixel, Grad-CAM.

Feature maps are always drawn: of each stage of the backbone the mean over the channels, and the first three principal
components as red, green and blue. Of backbones with dynamic sparsification, the positions that each predictor keeps are drawn
too. --pixel adds how SimViT attends: in stages 1 to 3 the weights of the window around the
pixel, in stage 4 those of the whole image, head by head. Zeros outside of the map take part in attention; their share is
written beside the picture. --grad-cam adds where the score of a class comes from, for classifiers and segmentors.

The image is prepared by the pipeline of the config's test_dataloader, and pictures show what is left of it.
"""
import argparse
import re
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope

from ..analysis import feature_maps
from ..models import load_model
from .config import add_options, load_config
from .errors import one_line_errors
from .infer import find_classes


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    add_options(parser)
    parser.add_argument('image', type=Path, help='image file')
    parser.add_argument('--checkpoint', metavar='CKPT',
                        help='checkpoint file; without it, the weights are those of init_cfg, or random')
    parser.add_argument('--out-dir', type=Path, metavar='DIR',
                        help='where the PNG files go; ./work_dirs/<config name>/visualized by default')
    parser.add_argument('--pixel', type=int, nargs=2, metavar=('X', 'Y'),
                        help='draw the attention of this pixel of the image file, counted from 0 at the upper left')
    parser.add_argument('--stage', type=int, nargs='+', metavar='N', help='of which stages, from 1; all by default')
    parser.add_argument('--block', type=int, metavar='N', help='of which of their blocks, from 1; the last by default')
    parser.add_argument('--grad-cam', nargs='?', const='', metavar='CLASS',
                        help='draw Grad-CAM of a class (name or number), or of the predicted one; needs pytorch-grad-cam: '
                        + feature_maps.INSTALL_GRAD_CAM)
    args = parser.parse_args(argv)
    if args.pixel is None and (args.stage is not None or args.block is not None):
        parser.error('--stage and --block say which attention to draw and need --pixel X Y')
    return args


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Draw what a command line asks for."""
    args = parse_args(argv)
    torch.manual_seed(0)  # for weights that no checkpoint gives
    cfg = load_config(args)
    model, meta = load_model(cfg, args.checkpoint)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        visualize(args, cfg, model, meta)


def visualize(args: argparse.Namespace, cfg: Config, model: BaseModel, meta: dict) -> None:
    """Write the pictures, once all that can be wrong with the options was looked for."""
    out_dir = args.out_dir or Path(cfg.work_dir, 'visualized')
    view = feature_maps.read_image(cfg, model, str(args.image))
    # All that can be wrong with the options, before anything is written.
    pixel = None if args.pixel is None else feature_maps.find_pixel(view, *args.pixel)
    attention = [] if pixel is None else feature_maps.get_pixel_attention(model.backbone, view, *pixel, args.stage, args.block)
    if args.grad_cam is not None:
        classes, _ = find_classes(model, meta, feature_maps.get_test_dataset(cfg))
        name, heat = feature_maps.get_grad_cam(model, view, classes, args.grad_cam or None)

    def save(figure: Figure, name: str) -> None:
        out_dir.mkdir(parents=True, exist_ok=True)
        path = out_dir / f'{args.image.stem}_{name}.png'
        figure.savefig(path, dpi=120)
        print(f'written: {path}')

    save(feature_maps.draw_feature_maps(view, feature_maps.get_feature_maps(model.backbone, view)), 'features')
    stride, decisions = feature_maps.get_decisions(model.backbone, view)
    if decisions:
        save(feature_maps.draw_decisions(view, stride, decisions, model.backbone.keep_ratios), 'decisions')
    for found in attention:
        shares = ', '.join(f'{share:.1%}' for share in found.outside)
        print(f'stage {found.stage}, block {found.block}: token {found.column} {found.row} of stride {found.stride}'
              + (f'; weight on zeros outside of the map, head by head: {shares}' if found.kernel_size else ''))
        save(feature_maps.draw_pixel_attention(view, args.pixel, found),
             f'pixel_{args.pixel[0]}_{args.pixel[1]}_stage{found.stage}_block{found.block}')
    if args.grad_cam is not None:
        figure = feature_maps.draw_grad_cam(view, heat, f'Grad-CAM of {name}, by the last map of the backbone')
        save(figure, 'grad_cam_' + re.sub(r'\W+', '_', name))
