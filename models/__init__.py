"""Pixels -> logits: every model takes images in [0, 1] (N,3,H,W) and returns logits (N,K).

Importing the package registers the toolkit's own models, so that `timm.create_model` finds them.

From timm as they are, and what to know about them:
    resnet18, resnet50, ...         the last BatchNorm of a block starts at 0; `zero_init_last: false` starts it at 1,
                                    as the papers on robustness do
    swin_tiny_patch4_window7_224    built for one image size, a multiple of 4; where a stage's map is smaller than the
                                    window, the window and its position table shrink, so weights of 224 do not fit 64
    convnext_tiny, poolformer_s36   any size from 32; layer scale starts at 1e-6. PoolFormer's norms are GroupNorms of
                                    one group, and the biases of its first norms (`norm1`) never have a gradient
"""

from models import deit as deit  # registers deit_mini, deit_mid, their kin
from models import hybrid_deit as hybrid_deit  # registers hybrid_deit_mini
from models import resnet as resnet  # registers resnet50_gelu and its kin
from models import robust_resnet as robust_resnet  # registers robust_resnet_dw_small and its kin
from models import small as small  # registers small_cnn and small_vit
