"""Scene sources, feature shards and the stream of training pairs."""
