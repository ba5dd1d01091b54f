"""What the sites file says of a Balsam site."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class BalsamAccess(BaseModel):
    """Where the server is, which of its sites is meant, and how to get in."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    api: str = Field(description="URL of the Balsam server")
    site: str = Field(description="The site's name at the server (`hpn site init` registers it)")
    app: str = Field("HappyStage", description="The application registered for it")
    token_env: str = Field("BALSAM_TOKEN", description="Environment variable with an access token; read first")
    token_file: Path = Field(
        Path("~/.balsam/client.yml"), description="Balsam's own client file, or a file that holds the token alone"
    )
    timeout_s: float = Field(10.0, gt=0, description="Longest time that a call may take")
    poll_s: float = Field(3.0, gt=0, description="Time between two looks at jobs and batch jobs")


class PoolLimits(BaseModel):
    """Batch jobs that the executor may ask for as work comes, and gives back as it goes.

    max_nodes 0: it asks for none; nodes come from `hpn site request` or from Balsam's own services.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    queue: str | None = Field(None, description="Queue or partition [the site folder's default]")
    project: str | None = Field(None, description="Project or account to be charged")
    max_nodes: int = Field(0, ge=0, description="Nodes of all batch jobs together")
    nodes_per_batch: int | None = Field(None, ge=1, description="Largest batch job [what the queue allows]")
    max_batch_jobs: int = Field(4, ge=1, description="Batch jobs, waiting and running, at a time")
    walltime_min: int = Field(60, ge=5, description="Walltime of a batch job [at most what the queue allows]")
    idle_s: float = Field(120.0, ge=0, description="A batch job that had no work for so long is given back")
    options: dict[str, str] = Field(default_factory=dict, description="Further parameters of the job template")
