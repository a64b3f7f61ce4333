"""The SQLite file of the film table, with films of one's own."""

import sqlite3
from contextlib import closing

OMDB = (
    *("ID", "Title", "Year", "Rating", "Runtime", "Genre", "Director", "Writer", "Cast"),
    *("Language", "Country", "Awards"),
)
TOMATOES = ("ID", "Reviews", "Consensus", "Meter")


def write_films(path, films, reviews):
    """Writes rows of the tables `omdb`, numbered from 1, and `tomatoes`; what they lack is NULL."""
    numbered = [{"ID": number, **film} for number, film in enumerate(films, 1)]
    with closing(sqlite3.connect(path)) as database:
        for table, columns, rows in (("omdb", OMDB, numbered), ("tomatoes", TOMATOES, reviews)):
            names = ", ".join(f'"{column}"' for column in columns)
            database.execute(f"CREATE TABLE {table} ({names})")
            database.executemany(
                f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})",
                [[row.get(column) for column in columns] for row in rows],
            )
        database.commit()
