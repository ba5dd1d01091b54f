"""Sites from a YAML file: which executor takes jobs where.

::

    local: {executor: local, cores: 8, memory_gb: 32}
    gpu:   {executor: service, address: gpu-host:50051, description: The GPU box}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from happyneurons.errors import UserError
from happyneurons.executors.base import Executor


class SiteConfig(BaseModel):
    """One site of the file."""

    model_config = ConfigDict(extra="forbid")
    executor: Literal["local", "service"]
    description: str = ""
    cores: int | None = Field(None, ge=1, description="local: cores that jobs may use together [all]")
    memory_gb: float | None = Field(None, gt=0, description="local: memory that jobs may use together, GB [all]")
    address: str | None = Field(None, description="service: host:port of a StageService")


def load_sites(path: Path | None) -> dict[str, SiteConfig]:
    """Sites of a file; without one, this machine as `local`. Raises UserError."""
    if path is None:
        return {"local": SiteConfig(executor="local", description="this machine")}
    try:
        document: Any = yaml.safe_load(path.read_text())
        return {str(name): SiteConfig.model_validate(value) for name, value in dict(document).items()}
    except OSError as error:
        raise UserError(f"sites file {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValidationError, TypeError, ValueError) as error:
        raise UserError(f"sites file {path}: {error}") from None


def make_executor(name: str, config: SiteConfig) -> Executor:
    """The executor of a site. Raises UserError if its configuration lacks something."""
    if config.executor == "local":
        from happyneurons.executors.local import LocalExecutor

        return LocalExecutor(config.cores, config.memory_gb)
    from happyneurons.executors.service import ServiceExecutor

    if not config.address:
        raise UserError(f"site {name}: executor service needs `address: host:port`")
    return ServiceExecutor(config.address)
