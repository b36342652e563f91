"""The order of a start; ``processes`` tells why it is this one."""

import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from app.platforms.base import Misconfigured, Transient
from app.platforms.local import procfs
from app.platforms.local.process import Command, Record, Records, note_starts, tail
from app.platforms.local.spawner import Spawner

START_SECONDS = 10.0


class Starter:
    """Starts processes in the spawner's thread. ``fault`` is called at named points, for crash tests."""

    def __init__(self, records: Records, spawner: Spawner, fault: Callable[[str], None]) -> None:
        self._records = records
        self._spawner = spawner
        self._fault = fault

    def start(self, command: Command) -> Record:
        """Start a process; blocks, in the spawner's thread. Raises Misconfigured or Transient."""
        record = Record(
            name=command.name,
            kind=command.kind,
            marker=command.marker,
            boot=procfs.boot_id(),
            created=time.time(),
            sandboxed=bool(command.sandbox),
            memory_bytes=command.memory_bytes,
            deadline=command.deadline,
            tmpfs=list(command.tmpfs),
            extra=command.extra,
        )
        self._fault("local.intent")
        self._records.save(record)
        self._fault("local.spawn")
        log = os.open(self._records.log(command.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if command.sandbox:
                self._start_sandbox(command, record, log)
            else:
                self._start_plain(command, record, log)
        except OSError as error:
            self._records.path(record.name).unlink(missing_ok=True)
            raise Transient("local", "start", f"the process could not be started: {error}") from error
        except (Misconfigured, Transient):
            self._records.path(record.name).unlink(missing_ok=True)
            raise
        finally:
            os.close(log)
        return record

    def _start_sandbox(self, command: Command, record: Record, log: int) -> None:
        fifo = self._records.folder / f".gate-{command.marker}"
        os.mkfifo(fifo, 0o600)
        gate = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
        fifo.unlink()
        self._records.status(record.name).unlink(missing_ok=True)
        status = os.open(
            self._records.status(record.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        info, info_end = os.pipe()
        variables = variables_file(command.env)
        try:
            words = [*command.sandbox, "--args", str(variables), "--json-status-fd", str(status)]
            argv = [*words, "--info-fd", str(info_end), "--block-fd", str(gate), "--", *command.argv]
            record.pid = self._spawner.popen(argv, {}, (variables, status, info_end, gate), log, None)
            os.close(info_end)
            info_end = -1
            self._fault("local.record")
            record.inner = self._read_info(info, record)
            note_starts(record)
            self._records.save(record)
            self._bound(command, record)
            self._fault("local.gate")
            os.write(gate, b"1")
            self._fault("local.running")
        finally:
            for descriptor in (gate, status, info, variables, *([info_end] if info_end >= 0 else [])):
                os.close(descriptor)

    def _start_plain(self, command: Command, record: Record, log: int) -> None:
        env = {**command.env, "SLIPWAY_MARKER": command.marker}
        record.pid = record.inner = self._spawner.popen(command.argv, env, (), log, command.cwd)
        self._fault("local.record")
        note_starts(record)
        self._records.save(record)
        self._bound(command, record)
        self._fault("local.gate")
        self._fault("local.running")

    def _read_info(self, info: int, record: Record) -> int:
        """Read the id of the sandbox's first process; no answer means that the sandbox could not be made."""
        data, end = b"", time.monotonic() + START_SECONDS
        while b"}" not in data:
            if not select.select([info], [], [], max(0.0, end - time.monotonic()))[0]:
                self._abandon(record)
                raise Transient("local", "start", f"the sandbox did not come up within {START_SECONDS:.0f} s")
            chunk = os.read(info, 4096)
            if not chunk:
                self._abandon(record)
                last = tail(self._records.log(record.name), 5)
                raise Misconfigured("local", "start", f"the sandbox could not be made: {'; '.join(last)[-300:]}")
            data += chunk
        return int(json.loads(data)["child-pid"])

    def _abandon(self, record: Record) -> None:
        assert record.pid is not None
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)  # our own child that nobody has reaped: the id is still its
        os.waitpid(record.pid, 0)

    def _bound(self, command: Command, record: Record) -> None:
        assert record.inner is not None
        self._spawner.limit(record.inner, command.limits)
        if command.cores:
            with suppress(OSError):  # a hint: the program may undo it, and a container's root may not set it
                os.sched_setaffinity(record.inner, command.cores)


def variables_file(env: Mapping[str, str]) -> int:
    """Return an open file that tells bubblewrap the program's environment.

    Its own environment and command line stay empty of it: the sandbox's first process shows those to all in the sandbox.
    """
    descriptor = os.memfd_create("slipway")
    words = [word for name, value in env.items() for word in ("--setenv", name, value)]
    os.write(descriptor, b"".join(os.fsencode(word) + b"\0" for word in words))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
