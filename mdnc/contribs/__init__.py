"""Helpers around the block."""

from . import torchsummary as torchsummary
