"""What Balsam has to know of batch systems and MPI launchers, where its own classes do not fit.

Runs in the site's Balsam environment (on PYTHONPATH of the site's agent and of launchers), never in ours. `site.yaml`
names these classes; the sizes of a node come from the site's environment.sh (HPN_NODE_CORES, HPN_NODE_GPUS).
"""

import logging
import os
import re
import shlex
import socket
import subprocess
from datetime import UTC, datetime

import psutil
from balsam.platform.app_run.app_run import SubprocessAppRun
from balsam.platform.compute_node import ComputeNode
from balsam.platform.scheduler import LocalProcessScheduler, PBSScheduler
from balsam.platform.scheduler import SlurmScheduler as BalsamSlurmScheduler
from balsam.platform.scheduler.scheduler import SchedulerError, SchedulerJobLog, scheduler_subproc
from balsam.site.status_updater import BulkStatusUpdater

logger = logging.getLogger(__name__)
NO_PROJECT = "none"


class _Node(ComputeNode):
    cpu_ids = list(range(int(os.environ.get("HPN_NODE_CORES") or psutil.cpu_count() or 1)))
    gpu_ids = list(range(int(os.environ.get("HPN_NODE_GPUS") or 0)))

    def check_fit(self, num_cpus, num_gpus, occupancy):
        """A job's share of the node (its node_packing_count) and its GPUs decide, its processes do not.

        The one that coordinates the ranks sleeps: 64 ranks and it fit into 64 cores, 4 and it share 4 GPUs. By
        Balsam's own rule such a job waits for ever, and only the launcher's log says so.
        """
        return super().check_fit(0, min(num_gpus, len(self.gpu_ids)), occupancy)


class SlurmNode(_Node):
    """Nodes of the Slurm job that the launcher runs in."""

    @classmethod
    def get_job_nodelist(cls):
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        return [cls(name, name) for name in subprocess.check_output(command, text=True).split()]

    @staticmethod
    def get_scheduler_id():
        job = os.environ.get("SLURM_JOB_ID")
        return int(job) if job else None


class PbsNode(_Node):
    """Nodes of the PBS job that the launcher runs in."""

    @classmethod
    def get_job_nodelist(cls):
        with open(os.environ["PBS_NODEFILE"]) as file:
            return [cls(name, name) for name in dict.fromkeys(file.read().split())]

    @staticmethod
    def get_scheduler_id():
        job = os.environ.get("PBS_JOBID")
        return int(re.match(r"\d+", job).group()) if job else None


class LocalNode(_Node):
    """This machine."""

    @classmethod
    def get_job_nodelist(cls):
        return [cls(socket.gethostname(), socket.gethostname())]

    @staticmethod
    def get_scheduler_id():
        # The batch script is a process; its number is the batch job's.
        for parent in psutil.Process().parents():
            if _script_of(parent.cmdline()):
                return parent.pid
        return None


class HydraRun(SubprocessAppRun):
    """MPICH's own launcher (HPN_MPIEXEC; it passes the environment on, and starts other nodes through srun or ssh)."""

    def _build_cmdline(self):
        return " ".join(
            [
                shlex.quote(os.environ.get("HPN_MPIEXEC") or "mpiexec"),
                "-n", str(self.get_num_ranks()),
                "-ppn", str(self._ranks_per_node),
                "--hosts", ",".join(self._node_spec.hostnames),
                os.environ.get("HPN_MPIEXEC_OPTIONS", ""),
                self._cmdline,
            ]
        )  # fmt: skip


class PalsRun(SubprocessAppRun):
    """Cray's launcher (PALS). Balsam's classes for it bind ranks to cores, which fails for one rank more."""

    def _build_cmdline(self):
        return " ".join(
            [
                "mpiexec",
                "-n", str(self.get_num_ranks()),
                "-ppn", str(self._ranks_per_node),
                "--hosts", ",".join(self._node_spec.hostnames),
                "--cpu-bind none --envall",
                self._cmdline,
            ]
        )  # fmt: skip


class SlurmScheduler(BalsamSlurmScheduler):
    """Slurm with or without accounting: Balsam's own class stops the agent where sacct does not answer."""

    @classmethod
    def discover_projects(cls):
        return [NO_PROJECT]

    @staticmethod
    def _render_submit_args(script_path, project, queue, num_nodes, wall_time_min, **kwargs):
        name = os.path.splitext(os.path.basename(script_path))[0]
        args = ["sbatch", "--parsable", "-o", f"{name}.output", "-e", f"{name}.error", "-p", queue]
        if project != NO_PROJECT:
            args += ["-A", project]
        return [*args, "-N", str(int(num_nodes)), "-t", str(int(wall_time_min)), str(script_path)]

    @staticmethod
    def _parse_submit_output(submit_output):
        return int(submit_output.strip().splitlines()[-1].split(";")[0])

    @staticmethod
    def _parse_logs(scheduler_id, job_script_path):
        """Start and end from the controller, which forgets a job after some minutes; empty after that."""
        try:
            shown = scheduler_subproc(["scontrol", "-o", "show", "job", str(scheduler_id)])
        except (SchedulerError, OSError) as error:
            logger.info("batch job %s: no times from scontrol: %s", scheduler_id, error)
            return SchedulerJobLog()
        found = dict(re.findall(r"\b(StartTime|EndTime)=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", shown))
        return SchedulerJobLog(start_time=_utc(found.get("StartTime")), end_time=_utc(found.get("EndTime")))


class PbsScheduler(PBSScheduler):
    """PBS without questions at the terminal."""

    @classmethod
    def discover_projects(cls):
        return [NO_PROJECT]

    @staticmethod
    def _render_submit_args(script_path, project, queue, num_nodes, wall_time_min, **kwargs):
        args = PBSScheduler._render_submit_args(script_path, project, queue, num_nodes, wall_time_min, **kwargs)
        if project == NO_PROJECT:
            at = args.index("-A")
            del args[at : at + 2]
        return args


class LocalScheduler(LocalProcessScheduler):
    """Batch scripts as processes of this machine; Balsam's own class takes every process of the user for a job."""

    @classmethod
    def get_statuses(cls, project=None, user=None, queue=None):
        found = super().get_statuses(project=project, user=user, queue=queue) if user else super().get_statuses()
        return {number: status for number, status in found.items() if cls._is_ours(number)}

    @classmethod
    def discover_projects(cls):
        return [NO_PROJECT]

    @staticmethod
    def _is_ours(number):
        try:
            process = psutil.Process(number)
            script = _script_of(process.cmdline())
            folder = os.path.realpath(os.environ["BALSAM_SITE_PATH"])
            return process.status() != psutil.STATUS_ZOMBIE and script.startswith(folder + os.sep)
        except psutil.Error:
            return False


def _script_of(command):
    """The batch script that a process is the shell of; empty for other processes."""
    if len(command) == 2 and os.path.basename(command[0]) == "bash":
        path = os.path.realpath(command[1])
        if re.fullmatch(r"qlaunch\d+\.sh", os.path.basename(path)):
            return path
    return ""


def _utc(text):
    """Slurm's local time as Balsam wants it: in UTC, without a zone."""
    if text is None:
        return None
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").astimezone(UTC).replace(tzinfo=None)


def _update_one_by_one(self, updates):
    """Tell the server of state changes, a call for each.

    Balsam's server takes a list of changes for one SQL statement with the columns of the first. A job in it that is
    in its new state already (timed out by the server and by its launcher, say) makes it answer 500, and the agent
    tries the same list again until it gives up; or the server drops the states of all others and says nothing.
    """
    for update in sorted(updates, key=lambda update: update["state_timestamp"]):
        self.client.bulk_patch("jobs/", [update])
    logger.info("updated %d jobs", len(updates))


# The agent and launchers import this module for their scheduler and nodes.
BulkStatusUpdater._perform_updates = _update_one_by_one
