"""A port of BlockBottleneck2d: what is not written yet says so.

mdnc-spec run --subject 'cmd:python port.py' --until-first-failure
"""

from __future__ import annotations

import protocol

protocol.claim_stdout()  # before any library that may print

# import your framework here


def forward(call: protocol.Call) -> tuple[protocol.Array, protocol.Named]:
    """The output for call.x (N, C, H, W) and, in training, every new buffer by name (chapters 4 and 6)."""
    raise NotImplementedError("forward is not written yet")


# Write these two and hand them to `serve`: `backward(call, dy)` returns the gradient of the input and that of every
# parameter by name (chapter 5), `init(block, seed)` every parameter and buffer of a new block by name (7.4 to 7.7).

if __name__ == "__main__":
    protocol.serve({"name": "my port", "version": "0", "language": "Python"}, forward)
