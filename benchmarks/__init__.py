"""Studies of jserve: each folder has its programs, its results and what they say."""
