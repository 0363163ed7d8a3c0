"""MPVG in a model that exists already: torchvision's and timm's ViTs, `nn.TransformerEncoder`, Swin."""
from .deliver import add_layerwise_pe
from .models import adapt_encoder, adapt_timm_vit, adapt_torchvision_vit
from .norm_with_pe import NormWithPE
from .swin import adapt_swin, resize_swin_pe

__all__ = ["NormWithPE", "adapt_encoder", "adapt_swin", "adapt_timm_vit", "adapt_torchvision_vit", "add_layerwise_pe",
           "resize_swin_pe"]
