//! A replica's copy of each disk.
