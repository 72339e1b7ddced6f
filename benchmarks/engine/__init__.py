"""Parts of the measurements of message passing: graphs, executors, a process per row, the environment."""
