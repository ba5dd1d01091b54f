"""Results at a place that browsers can read: object stores, folders of a web server, Globus collections."""

from happyneurons.publish.places import public_url
from happyneurons.publish.publishing import Published, publish, publishable

__all__ = ["Published", "public_url", "publish", "publishable"]
