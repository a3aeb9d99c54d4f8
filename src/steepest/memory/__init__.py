"""Where arrays lie: checks, layouts and walks of arrays, and arrays that lie in files."""
