"""Data as other software of the field keeps them, read into data set folders of this project."""
