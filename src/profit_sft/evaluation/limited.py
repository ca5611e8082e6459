"""Ask a process of its own, under limits of processor time and memory, what must not hang or crash this one."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

CPU_SECONDS = 10
_WORKER = Path(__file__).with_name("limited_worker.py")
# Where there are no limits of processor time. Nothing is called wrong for it, so it may be short.
_WALL_SECONDS = None if os.name == "posix" else 60.0


class LimitedProcess:
    """A process that runs the function `answer` of a module, see `limited_worker.py`; works from any thread.

    It starts with the first request, and anew after one that broke a limit.

    Args:
        module: A file of Python beside this one.
        cpu_seconds: Processor time one request may take. Wall-clock time is not limited, so that what is found does not
            depend on what else the machine does.
        environment: Further variables of its environment.

    Attributes:
        process: It, while it runs.
    """

    def __init__(self, module: str, *, cpu_seconds: int = CPU_SECONDS, environment: Mapping[str, str] | None = None):
        self.process: subprocess.Popen[str] | None = None
        self._command = [sys.executable, "-W", "ignore", str(_WORKER), str(_WORKER.with_name(module)), str(cpu_seconds)]
        self._environment = environment or {}
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, request: Any) -> Any | None:
        """Return what it answers; None where it broke a limit or died over the request.

        Args:
            request: Of JSON's values.
        """
        with self._lock:
            fresh = self.process is None or self.process.poll() is not None
            process = self._start() if fresh else self.process
            assert process is not None
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=_WALL_SECONDS)
            except (OSError, queue.Empty):
                line = ""
            except BaseException:  # Ctrl-C: the answer to this question would be taken for that to the next
                self._stop()
                raise
            if not line:
                self._stop()
                return None
            return json.loads(line)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _start(self) -> "subprocess.Popen[str]":
        self._stop()
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",  # sympy goes through sets, whose order decides what it tries first
                **self._environment,
            },
            text=True,
            encoding="utf-8",
        )
        self.process, self._lines = process, queue.SimpleQueue()
        assert process.stdout is not None
        # A thread, since a pipe cannot be read with a deadline on every system. An empty line says that it ended.
        threading.Thread(target=_forward, args=(process.stdout, self._lines), daemon=True).start()
        return process

    def _stop(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was still to be written has no reader any more
                pipe.close()
        self.process = None


def _forward(pipe: IO[str], lines: "queue.SimpleQueue[str]") -> None:
    with suppress(ValueError):  # closed by _stop
        for line in pipe:
            lines.put(line)
    lines.put("")
