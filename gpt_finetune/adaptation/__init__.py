"""Training less than all of a model: what `METHODS` lists, mostly by PEFT; quantised bases; merging."""
