"""The process that compares formulas with math-verify: `python math_worker.py`, one JSON line in, one out.

An answer of a model is input nobody has checked, and computer algebra can take for ever or all memory over it, in C
code that no signal interrupts. Here it may be killed, and math-verify's own time limit works: it needs a main thread.
In: {"expected": TEXT, "answers": [TEXT, ...]}. Out: true if any of the answers equals the expected one, else false.
"""

import os
import sys

if __name__ == "__main__":
    # Python puts a script's folder first, and modules of this one would hide others of the same name.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(os.path.abspath(__file__))]

import json

from math_verify import parse, verify

MEMORY_BYTES = 4 << 30
# Per step; where there is no SIGALRM math-verify would start a process for each, and our parent's limit is enough.
SECONDS = 3 if os.name == "posix" else None


def main() -> None:
    """Answer lines on stdin until it ends."""
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        request = json.loads(line)
        expected = parse(request["expected"], parsing_timeout=SECONDS)
        equal = any(
            verify(expected, parse(answer, parsing_timeout=SECONDS), timeout_seconds=SECONDS)
            for answer in request["answers"]
        )
        sys.stdout.write(json.dumps(equal) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
