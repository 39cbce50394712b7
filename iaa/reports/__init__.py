"""Pictures of results for people: the report of a test, the page of scores, charts, overlays."""
