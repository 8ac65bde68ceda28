"The build scripts of the book, one purpose each. Run them as `python -m tools.NAME`."
