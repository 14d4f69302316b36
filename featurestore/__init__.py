"""What happened: events, sessions, the worker's store, the lake, training windows."""
