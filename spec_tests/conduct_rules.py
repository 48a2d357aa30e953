"""The rules of PROTOCOL.md on which a port is asked where no call leads."""

from __future__ import annotations

import re
from typing import NamedTuple

# What each group of messages is about, and the part of the page that says it.
RULES = {
    "alone": "nothing is kept from one request to the next: the same request has the same answer again (Requests)",
    "arguments": "a text that is no integer, pair, null or name as written there is a wrong argument (Arguments)",
    "unknown": "a key that a port does not know changes nothing (Requests, Arguments)",
    "order": "the order of tensors, and spaces behind the header, change nothing (Messages, Tensors)",
    "shape": "what training alone refuses has an `out` in the reply to `describe` (Arguments)",
    "written": "a `mode`, `dtype` or `seed` that is missing, and a `mode`, `dtype`, `shape` or `seed` with a value "
    "that the page does not allow, is a `bad_request` (Errors)",
    "tensors": "a tensor that is missing, one too many or unlike what `describe` says is a `bad_request`, and an `x` "
    "of no floating-point type an `invalid_input` (Errors)",
    "offers": "what `hello` does not offer is answered `unsupported`, with its name as `feature` (Errors)",
    "wide": "a number is taken for no other one, and where it is too large, the answer is `oom` (Arguments)",
    "large": "a request may be larger than any buffer (Messages)",
    "types": "`init` gives tensors of its `dtype`, and counters of `I64` (Requests, Tensors)",
    "seeds": "a seed is any integer from 0 to 2^63 - 1; the same gives the same numbers, another one others (Requests)",
    "end": "where standard input ends, a port does as for `stop`; inside a request, its status is not 0 (Conduct)",
}
# Between what a complaint says of a port and the rule itself.
RULE = ". The rule: "
# Between the first message that shows it and the names of others.
_MORE = re.compile(r"; (?=\d+ more(?:: | messages were not sent))")


class Told(NamedTuple):
    """A complaint in its parts: `rule` is the sentence of the page, `rows` are what is told of it, a label each."""

    rule: str
    rows: tuple[tuple[str, str], ...]


def parts(complaint: str) -> Told:
    """A complaint as people read it; where it is about how the port stops, it is all in one row."""
    words, _, replay = complaint.partition("\nreplay: ")
    name, _, rest = words.partition(": ")
    again = (("replay", replay),) if replay else ()
    if name not in RULES:
        return Told("a port ends in time, in silence and with the right status (Conduct)", (("got", words), *again))
    before, _, after = rest.partition(RULE)
    got, *also = _MORE.split(before)
    rows = (("rule", name), ("got", got + after.removeprefix(RULES[name])))
    return Told(RULES[name], (*rows, *(("also", more) for more in also), *again))
