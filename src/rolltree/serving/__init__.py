"""The life of a request in any batching engine: options, bookkeeping, stops, limits of a step, agreement, control."""
