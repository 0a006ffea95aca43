//! The system side of the software processor, tested with small bare-metal guests.

mod code;
mod counting;
mod events;
mod machine;
mod messages;
mod paging;
mod privilege;
