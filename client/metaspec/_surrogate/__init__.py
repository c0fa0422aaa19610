"""`Surrogate` and `AsyncSurrogate`: calls, checks and batches."""
