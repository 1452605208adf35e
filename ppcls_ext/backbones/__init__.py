"""Networks: one file per architecture. Importing this package registers every builder."""

from ppcls_ext.backbones import densenet as densenet
from ppcls_ext.backbones import efficientnet as efficientnet
from ppcls_ext.backbones import groupmamba as groupmamba
from ppcls_ext.backbones import micronet as micronet
from ppcls_ext.backbones import replknet as replknet
from ppcls_ext.backbones import resnet_v2 as resnet_v2
from ppcls_ext.backbones import resnext as resnext
from ppcls_ext.backbones import shufflenet_v2 as shufflenet_v2
from ppcls_ext.backbones import vgg as vgg
from ppcls_ext.backbones import vit as vit
from ppcls_ext.backbones.published import Facts, facts, published_names

__all__ = ["Facts", "facts", "published_names"]
