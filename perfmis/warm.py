"""Command `warm`: run a command while a process stands by that has the training stack imported.

    python -m perfmis warm COMMAND ...

Importing torch, transformers, trl and seaborn costs several CPU-seconds a process, more than most jobs of a
small study. While COMMAND runs, ``python -m perfmis STAGE`` hands its arguments, folder, environment and
output streams to the warm process, which forks: the child runs the stage as if it had been started afresh.
Results do not depend on it; without it everything runs the same, only slower. When COMMAND ends, or a job is
killed, its children end too.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from perfmis import privacy

VARIABLE = "PERFMIS_WARM"
MODULES = ("torch", "transformers.models.llama", "peft", "trl.trainer.sft_trainer", "datasets", "seaborn")
STREAMS = 3
FORWARDED = (signal.SIGINT, signal.SIGTERM)


def _run(request: dict[str, object], streams: list[int]) -> int:
    """Run one stage in this (forked) process."""
    os.setsid()
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    os.chdir(str(request["folder"]))
    os.umask(int(request["umask"]))  # type: ignore[call-overload]
    import torch

    from perfmis.__main__ import run

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        return run(list(request["arguments"]))  # type: ignore[call-overload]
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _child(connection: socket.socket) -> None:
    """Serve one request: fork the stage, report its exit status, kill it when the client goes away."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, STREAMS)
    worker = os.fork()
    if worker == 0:
        status = _run(json.loads(message), streams)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    for stream in streams:
        os.close(stream)
    gone = os.fork()
    if gone == 0:
        connection.recv(1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker, signal.SIGKILL)
        os._exit(0)
    _, status = os.waitpid(worker, 0)
    with contextlib.suppress(OSError):
        connection.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
    os.kill(gone, signal.SIGKILL)
    os.waitpid(gone, 0)


def _serve(listener: socket.socket) -> None:
    """Import the heavy modules, then fork a child per request, for ever."""
    for module in MODULES:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in FORWARDED:  # who watches over a stage must outlive an interrupt, to end the stage
        signal.signal(number, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _child(connection)
            os._exit(0)
        connection.close()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start the warm process and yield the path of its socket; it ends with the context."""
    with tempfile.TemporaryDirectory(prefix="perfmis") as folder:
        path = str(Path(folder) / "warm")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        sys.stdout.flush()
        warm = os.fork()
        if warm == 0:
            try:
                _serve(listener)
            finally:
                os._exit(1)
        listener.close()
        try:
            yield path
        finally:
            os.kill(warm, signal.SIGKILL)
            os.waitpid(warm, 0)


def forward(arguments: list[str]) -> int:
    """Have the warm process run a stage and return its exit status."""
    request = {
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "umask": privacy.narrow(),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[VARIABLE])
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        status = connection.recv(1)
    return status[0] if status else 1


def main(argv: list[str]) -> None:
    """Run a command beside the warm process and exit with its status."""
    early: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: early.append(number))
    with server() as path:
        command = subprocess.Popen(argv, env={**os.environ, VARIABLE: path})
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the command as well
        signal.signal(signal.SIGTERM, lambda number, _: command.send_signal(number))
        for number in early:
            command.send_signal(number)
        status = command.wait()
    sys.exit(status if status >= 0 else 128 - status)
