//! panic_notifier
