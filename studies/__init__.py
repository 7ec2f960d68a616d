"""The study: which merge pays, and when. See `studies/README.md`."""
