"""PostgreSQL, Redis, a Balsam server, munge and a Slurm of several nodes, all in one scratch folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from integration_tests.hpc.reaper import members
from integration_tests.ports import is_free
from tests.worker.waiting import wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
BALSAM_ENVIRONMENT = Path(os.environ.get("HPN_BALSAM_ENV") or REPOSITORY / ".hpc" / "balsam")
START_LIMIT_S = 60.0

SLURM_CONF = """\
ClusterName=rig
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/slurm-state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] CPUs={cores} \
RealMemory={memory_mb} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Daemons:
    """Processes of one rig; each has a log NAME.log in the folder, and HPN_RIG in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("PYTHON", "HPN_", "SLURM_", "BALSAM_"))
        } | {"HPN_RIG": str(folder), "SLURM_CONF": str(folder / "slurm.conf"), "NO_PROXY": "*"}
        reaper = [sys.executable, str(Path(__file__).with_name("reaper.py")), str(folder)]
        self._reaper = subprocess.Popen(reaper, stdin=subprocess.PIPE, start_new_session=True)

    def start(self, name: str, *command: str, user: str | None = None, **environment: str) -> None:
        """Start a daemon in the foreground of a session of its own."""
        as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=self.environment | environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, **as_user,
            )  # fmt: skip

    def stop(self, name: str, number: int = signal.SIGTERM, limit_s: float = 20.0) -> None:
        """End a daemon, by force if it does not go."""
        process = self.running.pop(name)
        process.send_signal(number)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raise if a daemon has ended."""
        for name, process in self.running.items():
            if process.poll() is not None:
                tail = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{tail}")

    def answers(self, *command: str) -> str:
        """Output of a command that asks a daemon; empty while it fails."""
        self.check()
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)
        return done.stdout or "yes" if done.returncode == 0 else ""

    def run(self, *command: str, user: str | None = None, **environment: str) -> str:
        """Output of a command that has to succeed."""
        as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
        done = subprocess.run(
            command, env=self.environment | environment, cwd=self.folder, capture_output=True, text=True, **as_user
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[-4000:])
        return done.stdout

    def end(self) -> None:
        """End all of it; the reaper does the same if we never get here."""
        if "postgres" in self.running:
            self.stop("postgres", signal.SIGQUIT)  # so that its shared memory is freed
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        self._reaper.wait(60)
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        left = members(str(self.folder))
        if left:
            raise RuntimeError(f"processes that would not end: {left}")


def start_database(daemons: Daemons) -> dict[str, str]:
    """PostgreSQL and Redis, on sockets in the folder; the variables that make a Balsam server use them."""
    folder = daemons.folder
    user = "postgres" if os.geteuid() == 0 else None
    data = folder / "postgres"
    data.mkdir(mode=0o700)
    if user:
        account = pwd.getpwnam(user)
        os.chown(data, account.pw_uid, account.pw_gid)
    tools = _postgres_tools()
    initdb = [str(tools / "initdb"), "-D", str(data), "--auth=trust", "-U", "postgres", "--no-sync", "-E", "UTF8"]
    daemons.run(*initdb, user=user)
    settings = ("listen_addresses=", f"unix_socket_directories={data}", "fsync=off", "max_connections=50")
    options = [part for setting in settings for part in ("-c", setting)]
    daemons.start("postgres", str(tools / "postgres"), "-D", str(data), *options, user=user)
    socket_file = folder / "redis.sock"
    daemons.start(
        "redis", "redis-server", "--port", "0", "--unixsocket", str(socket_file), "--save", "", "--dir", str(folder)
    )
    query = ("psql", "-h", str(data), "-U", "postgres", "-qc")
    wait_for(lambda: daemons.answers(*query, "SELECT 1"), "PostgreSQL", START_LIMIT_S)
    daemons.run(*query, "CREATE DATABASE balsam")
    wait_for(lambda: daemons.answers("redis-cli", "-s", str(socket_file), "ping"), "Redis", START_LIMIT_S)
    return {
        "BALSAM_DATABASE_URL": f"postgresql://postgres@/balsam?host={data}",
        "BALSAM_REDIS_PARAMS": f'{{"unix_socket_path": "{socket_file}"}}',
    }


def start_balsam_server(daemons: Daemons, port: int, environment: dict[str, str]) -> None:
    """A Balsam server that answers."""
    python = str(BALSAM_ENVIRONMENT / "bin" / "python")
    daemons.start(
        "server", python, "-m", "uvicorn", "balsam.server.main:app", "--host", "127.0.0.1", "--port", str(port),
        "--log-level", "warning", **environment,
    )  # fmt: skip

    def answers() -> bool:
        daemons.check()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/sites/", timeout=5)
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False
        return True

    wait_for(answers, "the Balsam server", START_LIMIT_S)


def start_slurm(daemons: Daemons, nodes: int, cores: int, memory_mb: int) -> None:
    """munge and a Slurm whose nodes, n1 to nN, are all this machine."""
    folder = daemons.folder
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    sock = folder / "munge.sock"
    daemons.start(
        "munge", "munged", "--foreground", "--force", "--key-file", str(folder / "munge.key"), "--socket", str(sock),
        "--pid-file", str(folder / "munge.pid"), "--seed-file", str(folder / "munge.seed"), "--log-file",
        str(folder / "munged.log"),
    )  # fmt: skip
    controller, first = free_ports(1)[0], free_ports(nodes)[0]
    text = SLURM_CONF.format(
        folder=folder, host=socket.gethostname().split(".")[0], user=pwd.getpwuid(os.geteuid()).pw_name, nodes=nodes,
        cores=cores, memory_mb=memory_mb, controller_port=controller, first_port=first, last_port=first + nodes - 1,
    )  # fmt: skip
    (folder / "slurm.conf").write_text(text)
    (folder / "slurm-state").mkdir()
    wait_for(lambda: daemons.answers("munge", "-n", "-S", str(sock)), "munge", START_LIMIT_S)
    daemons.start("slurmctld", "slurmctld", "-D", "-c")
    for number in range(1, nodes + 1):
        (folder / f"spool-n{number}").mkdir()
        daemons.start(f"slurmd-{number}", "slurmd", "-D", "-N", f"n{number}")
    idle = ("sinfo", "-h", "-N", "-t", "idle", "-o", "%N")
    wait_for(lambda: len(daemons.answers(*idle).split()) == nodes, "Slurm's nodes", START_LIMIT_S)


def free_ports(count: int) -> list[int]:
    """Consecutive ports that nobody listens on, below those the kernel gives to clients."""
    chance = random.SystemRandom()
    while True:
        first = chance.randrange(20_000, 32_000)
        found = list(range(first, first + count))
        if all(is_free(port) for port in found):
            return found


def _postgres_tools() -> Path:
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not versions:
        raise RuntimeError("PostgreSQL is not installed: run scripts/hpc-install")
    return versions[-1].parent
