"""The encoders: `vit.py` (plain, of clips and images) and `mvit.py` (multiscale)."""

from tubelet.backbones.mvit import MViTShape
from tubelet.backbones.vit import ViTShape

Encoder = ViTShape | MViTShape  # the sizes of an encoder; `build` makes it
