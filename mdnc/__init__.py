"""The reference implementation of MDNC's bottleneck residual block."""

from . import contribs as contribs
from . import modules as modules
