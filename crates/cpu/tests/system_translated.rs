//! The tests of `system` once more, with everything translated that can be.

#[path = "system/code.rs"]
mod code;
#[path = "system/counting.rs"]
mod counting;
#[path = "system/events.rs"]
mod events;
#[path = "system/machine.rs"]
mod machine;
#[path = "system/messages.rs"]
mod messages;
#[path = "system/paging.rs"]
mod paging;
#[path = "system/privilege.rs"]
mod privilege;
