"""The data set of `make demo`: a small character to learn, in English and Chinese; data only, see README.md."""
