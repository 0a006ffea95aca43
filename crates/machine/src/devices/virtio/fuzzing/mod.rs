//! Drives each device as a hostile guest would.
