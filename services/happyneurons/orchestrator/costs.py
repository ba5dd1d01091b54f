"""What the time of a site costs: facts of the sites file, for metrics (never for decisions)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator

BUDGET_DAYS = 30
"""Budgets are for any so many days that follow one another."""


class SiteCost(BaseModel):
    """`cost:` of a site: a price for the time that jobs hold cores or nodes, and what may be spent."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    per_core_hour: float | None = Field(None, ge=0, description="Price of a core for an hour")
    per_node_hour: float | None = Field(None, ge=0, description="Price of a node for an hour; jobs pay by their cores")
    currency: str = Field(
        "EUR", pattern=r"^[A-Za-z][A-Za-z0-9_]{0,15}$", description="What prices are in: EUR, or node_hours of an award"
    )
    budget: float | None = Field(None, gt=0, description=f"What jobs may cost in {BUDGET_DAYS} days")

    @model_validator(mode="after")
    def _one_price(self) -> SiteCost:
        if (self.per_core_hour is None) == (self.per_node_hour is None):
            raise ValueError("give per_core_hour or per_node_hour, one of the two")
        return self


@dataclass(frozen=True)
class SiteRate:
    """What a site's cores are worth."""

    cores_per_node: int | None = None
    """Cores of one node; None where nobody said."""
    per_core_hour: float | None = None
    currency: str = ""
    budget: float | None = None


SiteRates = Mapping[str, SiteRate]
"""Site → what its cores are worth."""


def site_rate(cost: SiteCost | None, cores_per_node: int | None) -> SiteRate:
    """A site's rate. Raises ValueError if its price is by nodes and nobody knows how many cores one has."""
    if cost is None:
        return SiteRate(cores_per_node)
    price = cost.per_core_hour
    if price is None:
        assert cost.per_node_hour is not None
        if cores_per_node is None:
            raise ValueError("cost.per_node_hour needs `cores:`, what a node has")
        price = cost.per_node_hour / cores_per_node
    return SiteRate(cores_per_node, price, cost.currency, cost.budget)
