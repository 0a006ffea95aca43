//! Replication by checkpoints.
