//! Address translation: the software TLB and the page-table walk.
//!
//! The TLB's data side has four tables, chosen by [`Cpu::tlb_table`](crate::core::Cpu): supervisor, supervisor with RFLAGS.AC set
//! (SMAP suspended), user, and one spare that keeps indices in range. An entry holds tags (read, write), each
//! the page's linear address OR the *generation* of the address space at fill time: a lookup compares against the
//! current generation, so flushing an address space is changing a number. A write tag is set only when the page's
//! D bit is set in the guest's tables, the page is marked dirty in guest RAM, and it holds no decoded code. Only RAM is
//! entered; device memory always takes the slow path.
//!
//! What the TLB holds is a function of the instructions executed: neither budgets, nor harvests, nor what happens to be in the
//! block cache shows in it. A guest that changes page tables without invalidating could otherwise tell two replicas apart.

mod context;
mod fetch;
mod slow;
mod translate;
mod walk;

pub(crate) use translate::{Access, Place};
