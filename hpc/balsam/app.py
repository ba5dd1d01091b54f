"""The Balsam application of HAPPYNeurons: one job is one attempt, all of its MPI ranks.

Run by `hpn site init` with the Balsam environment's Python, BALSAM_SITE_PATH and BALSAM_CLIENT_PATH set. Balsam
stores the class as a pickle and loads it in the site's agent and in launchers. Only what is defined in the script
that is run gets into the pickle by value, so everything is in this one file.

The parameters choose a job and how to run it; none can carry a command: they are checked here before the job is
runnable, quoted by Balsam, and checked again by `hpn-rank` on the node.
"""

import os
import re
from pathlib import Path

from balsam.api import ApplicationDefinition


class HappyStage(ApplicationDefinition):
    """One attempt of a HAPPYNeurons job, as `hpn-stage run` makes it."""

    site = int((Path(os.environ["BALSAM_SITE_PATH"]) / ".balsam-site").read_text())
    command_template = (
        "bash $BALSAM_SITE_PATH/hpn-rank {{ stage }} {{ job_uri }} {{ threads }} {{ walltime_s }} {{ mode }}"
    )
    parameters = {
        "stage": {"required": True, "default": None, "help": "Name of the stage"},
        "job_uri": {"required": True, "default": None, "help": "STORE/jobs/KEY, in one of the site's stores"},
        "threads": {"required": False, "default": "1", "help": "Threads of each rank"},
        "walltime_s": {"required": False, "default": "0", "help": "The job's own limit in seconds; 0: none"},
        "mode": {"required": False, "default": "normal", "help": "normal, takeover, retry-quarantined, or both by +"},
    }

    def preprocess(self):
        """Refuse wrong parameters while nothing runs yet."""
        problem = self.problem({**self._default_params, **self.job.get_parameters()})
        if problem:
            self.job.state = "FAILED"
            self.job.state_data = {"reason": "parameters", "message": problem}
        else:
            self.job.state = "PREPROCESSED"

    def handle_error(self):
        """A non-zero exit. Whether it is tried again is the orchestrator's business, so never RESTART_READY."""
        data = self.last_event("RUN_ERROR")
        code, tail = data.get("returncode"), data.get("error", "")
        message = f"ranks ended with exit code {code}"
        self.job.state_data = {"reason": "error", "returncode": code, "error": tail, "message": message}
        self.job.state = "FAILED"

    def handle_timeout(self):
        """The batch job ended, or its launcher was lost: our orchestrator submits the rest."""
        message = self.last_event("RUN_TIMEOUT").get("message") or "the batch job ended while the ranks ran"
        self.job.state_data = {"reason": "timeout", "returncode": None, "error": self.tail(), "message": message}
        self.job.state = "FAILED"

    @staticmethod
    def problem(given):
        """What is wrong with the parameters, in one line; empty if nothing."""
        modes = ("normal", "takeover", "retry-quarantined", "takeover+retry-quarantined")
        names = {"stage", "job_uri", "threads", "walltime_s", "mode"}
        text = {name: value for name, value in given.items() if isinstance(value, str)}
        wrong = sorted((names | set(given)) - set(text))
        if wrong:
            return f"parameter {wrong[0]} must be a string"
        if set(text) - names:
            return f"parameter {min(set(text) - names)[:80]} is not known"
        stage, uri, threads, walltime, mode = (
            text[name] for name in ("stage", "job_uri", "threads", "walltime_s", "mode")
        )
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", stage):
            return f"stage: {stage[:80]!r} is no name of a stage"
        if not re.fullmatch(r"[A-Za-z0-9._~:/@+=,%-]{1,2000}", uri) or ".." in uri.split("/"):
            return f"job_uri: {uri[:200]!r} is not STORE/jobs/KEY in plain characters"
        root, _, key = uri.rpartition("/jobs/")
        if not root or not key or "/" in key:
            return f"job_uri: {uri[:200]!r} is not STORE/jobs/KEY"
        stores = [store.rstrip("/") for store in os.environ.get("HPN_STORES", "").split()]
        if not any(root == store or root.startswith(store + "/") for store in stores):
            return f"job_uri: {root[:200]} is in none of this site's stores: {' '.join(stores) or 'none'}"
        if not re.fullmatch(r"[1-9][0-9]{0,3}", threads) or int(threads) > 1024:
            return f"threads: {threads[:20]!r} is not 1 to 1024"
        if not re.fullmatch(r"[0-9]{1,9}", walltime):
            return f"walltime_s: {walltime[:20]!r} is not whole seconds"
        if mode not in modes:
            return f"mode: {mode[:80]!r} is none of {', '.join(modes)}"
        return ""

    def last_event(self, state):
        """Data of the last transition into a state; empty if it cannot be had."""
        try:
            events = list(self._client.EventLog.objects.filter(job_id=self.job.id, to_state=state))
            return dict(max(events, key=lambda event: event.timestamp).data or {}) if events else {}
        except Exception as error:  # noqa: BLE001 (any failure of the client: the tail is what there is)
            return {"error": f"{self.tail()}\n(events could not be read: {error})"}

    @staticmethod
    def tail():
        """End of the ranks' output; Balsam calls hooks in the job's folder."""
        try:
            return Path("job.out").read_bytes()[-2000:].decode(errors="replace")
        except OSError:
            return ""


if __name__ == "__main__":
    from balsam.config import ClientSettings

    ApplicationDefinition._set_client(ClientSettings.load_from_file().build_client())
    HappyStage.sync()
    print(f"app {HappyStage.__name__}: id {HappyStage.__app_id__}")
