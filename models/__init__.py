"""Pixels -> logits: every model takes images in [0, 1] (N,3,H,W) and returns logits (N,K).

Importing the package registers the toolkit's own models, so that `timm.create_model` finds them.
"""

from models import small as small  # registers small_cnn and small_vit
