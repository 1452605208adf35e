"""From an image file's bytes to a network's input: one preparation for training, evaluation, inference and deploy.

Names, arguments and meanings are PaddleClas's. Importing this package registers the operators; it needs numpy, Pillow
and OpenCV alone.
"""

from ppcls_ext.transforms.color import NormalizeImage, ToCHWImage
from ppcls_ext.transforms.decode import DecodeImage
from ppcls_ext.transforms.flow import DecodeError, Flow
from ppcls_ext.transforms.geometry import CropImage, RandCropImage, RandFlipImage, ResizeImage
from ppcls_ext.transforms.pipeline import Pipeline, build_transforms, check_transforms

__all__ = [
    "CropImage",
    "DecodeError",
    "DecodeImage",
    "Flow",
    "NormalizeImage",
    "Pipeline",
    "RandCropImage",
    "RandFlipImage",
    "ResizeImage",
    "ToCHWImage",
    "build_transforms",
    "check_transforms",
]
