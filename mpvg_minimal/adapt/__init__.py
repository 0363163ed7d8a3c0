"""MPVG in a model that exists already: torchvision's and timm's ViTs, `nn.TransformerEncoder`, Swin."""
from .models import adapt_encoder, adapt_swin, adapt_timm_vit, adapt_torchvision_vit, add_layerwise_pe
from .norm_with_pe import NormWithPE

__all__ = ["NormWithPE", "adapt_encoder", "adapt_swin", "adapt_timm_vit", "adapt_torchvision_vit", "add_layerwise_pe"]
