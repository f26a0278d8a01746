"""Write tests/model_parameters.json: how many parameters the model of each config has. Compare new ones with the published."""
import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parent.parent


def count_parameters(config: Path) -> int:
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    # Nothing of the size of the model is allocated, except for PVT v2, which asks its drop path rates for their values.
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('cpu' if 'pvtv2' in config.name else 'meta'):
        return sum(p.numel() for p in MODELS.build(cfg.model).parameters())


if __name__ == '__main__':
    counts = {str(path.relative_to(ROOT / 'configs')): count_parameters(path)
              for path in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in path.parts}
    (ROOT / 'tests/model_parameters.json').write_text(json.dumps(counts, indent=1) + '\n')
