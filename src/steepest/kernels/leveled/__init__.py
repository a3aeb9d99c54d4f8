"""What is compiled once for each instruction-set level, found by its place: a new file of rules,
operations or codecs needs no list (see ``dispatch`` and ``CMakeLists.txt``)."""
