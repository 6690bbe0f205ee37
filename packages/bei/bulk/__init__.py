"""Files of texts in, files of vectors out, on this machine or on a Ray cluster; a run that was killed goes on."""
