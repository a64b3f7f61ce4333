"""What several data sets of films share: raw files, titles, readers. It registers no tasks."""
