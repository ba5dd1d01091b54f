"""Make the tables of a Balsam server in the database BALSAM_DATABASE_URL, or leave those that are there.

The released package comes without its migrations, so the tables are made of the server's own models. One index of
theirs does not compile to valid SQL and is made by hand.
"""

from balsam.server.models.base import get_engine
from balsam.server.models.tables import Base
from sqlalchemy import text

TAGS_INDEX = "ix_jobs_tags"


def main() -> None:
    """Create what is missing."""
    indexes = Base.metadata.tables["jobs"].indexes
    for index in [found for found in indexes if found.name == TAGS_INDEX]:
        indexes.remove(index)
    engine = get_engine()
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE INDEX IF NOT EXISTS {TAGS_INDEX} ON jobs USING gin (tags jsonb_path_ops)"))


if __name__ == "__main__":
    main()
