"""From an image file's bytes to a network's input: one preparation for training, evaluation, inference and deploy.

Names, arguments and meanings are PaddleClas's. Importing this package registers the operators; it needs numpy, Pillow
and OpenCV alone.
"""

from ppcls_ext.transforms.augmix import AugMix
from ppcls_ext.transforms.color import NormalizeImage, ToCHWImage
from ppcls_ext.transforms.decode import DecodeImage
from ppcls_ext.transforms.erase import Cutout, GridMask, RandomErasing
from ppcls_ext.transforms.flow import DecodeError, Flow
from ppcls_ext.transforms.geometry import CropImage, RandCropImage, RandFlipImage, RandomTranspose, ResizeImage
from ppcls_ext.transforms.photometric import ColorJitter, GaussianBlur, RandomRotation
from ppcls_ext.transforms.pipeline import Pipeline, build_transforms, check_transforms
from ppcls_ext.transforms.policies import AutoAugment, RandAugment, TrivialAugmentWide
from ppcls_ext.transforms.timm_policy import TimmAutoAugment

__all__ = [
    "AugMix",
    "AutoAugment",
    "ColorJitter",
    "CropImage",
    "Cutout",
    "DecodeError",
    "DecodeImage",
    "Flow",
    "GaussianBlur",
    "GridMask",
    "NormalizeImage",
    "Pipeline",
    "RandAugment",
    "RandCropImage",
    "RandFlipImage",
    "RandomErasing",
    "RandomRotation",
    "RandomTranspose",
    "ResizeImage",
    "TimmAutoAugment",
    "ToCHWImage",
    "TrivialAugmentWide",
    "build_transforms",
    "check_transforms",
]
