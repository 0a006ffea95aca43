//! The innermost loop: blocks one after the other until something else must be done.

use memory::PAGE_BYTES;

use crate::block::BlockCache;
use crate::bus::Bus;
use crate::core::{BLOCK_BASE, Cpu};
use crate::op::Op;
use crate::stop::Stop;
use crate::translate::{self, Left};

/// Why [`execute`] returned. [`Cpu::rip`] and [`Cpu::count`] are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// [`Cpu::count`] has reached the limit.
    Limit,
    /// The next instruction's page is not in the fetch TLB, or its block not in the cache.
    Missing,
    /// An instruction ended in another way than [`Stop::Branch`] and [`Stop::Repeat`].
    Stop(Stop),
}

/// Runs blocks until `cpu.count` is `limit`, which is above it.
///
/// Kept apart from its caller, so that everything the loop uses stays in host registers.
#[inline(never)]
pub(super) fn execute(cpu: &mut Cpu, cache: &mut BlockCache, limit: u64, bus: &mut dyn Bus) -> Leave {
    let mut linear = cpu.fetch_linear();
    let translates = cache.translator().is_some();
    // The jump through which translated code was left for the block at `linear`.
    let mut jump = None;
    'page: loop {
        let Some(id) = cpu.fetch_hit(linear).and_then(|offset| cache.find(offset, cpu.mode)) else {
            return Leave::Missing;
        };
        let mut id = id;
        loop {
            if translates {
                cache.warm(&cpu.ram, id);
            }
            let Some((block, ops)) = cache.get(id) else {
                return Leave::Missing;
            };
            let left = limit - cpu.count;
            if translates
                && left >= u64::from(block.len)
                && let Some(code) = cache.code(id)
            {
                if let Some(jump) = jump.take() {
                    cache.link_code(jump, code);
                }
                match translate::run(cpu, cache, code, limit, bus) {
                    Left::AtBlock(through) => jump = through,
                    Left::Stopped(op, stop) => {
                        if let Err(stop) = end(cpu, &op, stop) {
                            return Leave::Stop(stop);
                        }
                    }
                }
                if cpu.count >= limit {
                    return Leave::Limit;
                }
                linear = cpu.fetch_linear();
                continue 'page;
            }
            jump = None;
            let cut = left < u64::from(block.len);
            let ops = if cut { ops.get(..left as usize).unwrap_or(ops) } else { ops };
            if let Err(stop) = run_ops(cpu, ops, bus) {
                return Leave::Stop(stop);
            }
            if cpu.count >= limit {
                return Leave::Limit;
            }
            let next = cpu.fetch_linear();
            if (next ^ linear) & !(PAGE_BYTES - 1) != 0 {
                linear = next;
                continue 'page;
            }
            let in_page = (next & (PAGE_BYTES - 1)) as u16;
            id = match cache.follow(id, in_page) {
                Some(id) => id,
                None => {
                    let Some(to) = cpu.fetch_hit(next).and_then(|offset| cache.find(offset, cpu.mode)) else {
                        return Leave::Missing;
                    };
                    cache.link(id, in_page, to);
                    to
                }
            };
        }
    }
}

/// Runs the ops of a block, or the first few of them. After `Ok` the next block may follow.
#[inline(always)]
pub(super) fn run_ops(cpu: &mut Cpu, ops: &[Op], bus: &mut dyn Bus) -> Result<(), Stop> {
    let Some((last, others)) = ops.split_last() else {
        return Ok(());
    };
    let base = cpu.rip;
    cpu.gpr[usize::from(BLOCK_BASE)] = base;
    for op in others {
        if let Err(stop) = (op.run)(cpu, op, bus) {
            return end(cpu, op, stop);
        }
    }
    // Host processors mispredict calls through pointers where guest code is large. The branch at a block's end, which is
    // every fifth instruction, does without: whether it is taken is data here.
    if last.branch != 0 {
        let offset = if cpu.flags.is_among(last.branch) { last.imm } else { last.next_offset() };
        let target = base.wrapping_add(offset);
        if cpu.is_canonical(target) {
            cpu.count += ops.len() as u64;
            cpu.rip = target;
            return Ok(());
        }
    }
    if let Err(stop) = (last.run)(cpu, last, bus) {
        return end(cpu, last, stop);
    }
    cpu.count += ops.len() as u64;
    cpu.rip = cpu.next_rip(last);
    Ok(())
}

#[inline(always)]
fn end(cpu: &mut Cpu, op: &Op, stop: Stop) -> Result<(), Stop> {
    cpu.count += u64::from(op.number) + 1;
    if stop == Stop::Branch {
        return Ok(());
    }
    end_otherwise(cpu, op, stop)
}

#[cold]
fn end_otherwise(cpu: &mut Cpu, op: &Op, stop: Stop) -> Result<(), Stop> {
    match stop {
        Stop::Branch | Stop::Transfer => {}
        Stop::Repeat => {
            cpu.rip = cpu.rip_of(op);
            return Ok(());
        }
        Stop::Sync | Stop::Halt | Stop::Pause => cpu.rip = cpu.next_rip(op),
        Stop::Fault | Stop::Alone | Stop::Shutdown => {
            cpu.count -= 1;
            cpu.rip = cpu.rip_of(op);
            if stop == Stop::Fault {
                cpu.blame_stack(op);
            }
        }
    }
    Err(stop)
}
