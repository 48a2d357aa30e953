"""Network blocks."""

from . import resnet as resnet
