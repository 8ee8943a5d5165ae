"""The index over pictures: kept up to date with the files, searched by words or by example."""

from sightline.search.filters import Where, parse_date
from sightline.search.hits import DuplicateGroup, Hit, Progress, Results, UpdateReport
from sightline.search.index import Index

__all__ = ["DuplicateGroup", "Hit", "Index", "Progress", "Results", "UpdateReport", "Where", "parse_date"]
