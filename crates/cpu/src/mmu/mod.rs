//! Address translation: the software TLB and the page-table walk.
//!
//! The TLB has four tables, chosen by [`Cpu::tlb_table`](crate::core::Cpu): supervisor, supervisor with RFLAGS.AC set
//! (SMAP suspended), user, and one spare that keeps indices in range. An entry holds three tags (read, write, execute), each
//! the page's linear address OR the *generation* of the address space at fill time: a lookup compares against the
//! current generation, so flushing an address space is changing a number. A write tag is set only when the page's
//! D bit is set in the guest's tables, the page is marked dirty in guest RAM, and it holds no decoded code. Only RAM is
//! entered; device memory always takes the slow path.

mod slow;
mod tlb;

pub(crate) use tlb::{Entry, TABLE_SUPERVISOR, TABLE_SUPERVISOR_AC, TABLE_USER, Tlb};
