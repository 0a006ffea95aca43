//! The connection between two replicas.
