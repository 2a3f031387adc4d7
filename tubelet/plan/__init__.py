"""What a run needs before it is started: parameters, memory of a process, operations, time."""
