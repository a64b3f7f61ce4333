"""What is known and said of films: attributes, what critics agree on, overviews, tones.

The tasks of `tasks.film_attributes`, `film_consensus`, `film_overviews` and `film_tones`.
"""

from tasks import film_attributes, film_consensus, film_overviews, film_tones

# Imported for the tasks that they register.
__all__ = ["film_attributes", "film_consensus", "film_overviews", "film_tones"]
