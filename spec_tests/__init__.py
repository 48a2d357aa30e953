"""The executable specification of MDNC's BlockBottleneck2d."""

__version__ = "0.1.0"
