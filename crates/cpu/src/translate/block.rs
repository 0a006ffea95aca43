//! [`translate`]: the code of one block.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::op::Op;
use crate::translate::asm::{Alu, Assembler, Jump, R14, R15, RAX, RCX, RDX, RSI, Size, condition, shift};
use crate::translate::form::{Effect, Form};
use crate::translate::stubs::Stubs;

/// What a block is made of.
pub(super) struct Source<'a> {
    /// Its ops, at the addresses at which its code will find them.
    pub ops: &'a [Op],
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Offset of its first byte in its page.
    pub in_page: u64,
}

/// Code that is jumped to seldom.
struct Cold {
    op: usize,
    jumps: Vec<Jump>,
    what: Todo,
}

/// What it does.
enum Todo {
    /// The op's handler has run and did not end with the next op.
    Stop,
    /// Runs the op's handler, which never ends with the next op.
    Branch,
    /// Runs the op's handler, and goes on there if it ends with the next op.
    Retry {
        back: usize,
        /// Whether what follows expects the guest's flags in the host's.
        flags: bool,
    },
}

/// A block that is being translated.
pub(super) struct Body<'a> {
    pub(super) asm: Assembler,
    pub(super) stubs: &'a Stubs,
    ops: &'a [Op],
    in_page: u64,
    /// The host's arithmetic flags are the guest's.
    pub(super) host_flags: bool,
    /// Somebody looks at the flags that the present instruction leaves.
    pub(super) flags_live: bool,
    /// Jumps of the present instruction to where its handler does it.
    pub(super) to_handler: Vec<Jump>,
    cold: Vec<Cold>,
}

/// Bytes of a page.
const PAGE_BYTES: i64 = memory::PAGE_BYTES as i64;

/// Writes the code of a block of 64-bit code, for the offset `start` in code memory. `None` when its bytes are not what its ops were
/// made of.
pub(super) fn translate(source: &Source, stubs: &Stubs, start: usize) -> Option<Assembler> {
    let instructions = decode(source)?;
    let plan = plan(&instructions);
    let mut body = Body {
        asm: Assembler::new(start),
        stubs,
        ops: source.ops,
        in_page: source.in_page,
        host_flags: false,
        flags_live: false,
        to_handler: Vec::new(),
        cold: Vec::new(),
    };
    let len = source.ops.len() as i32;
    body.asm.alu_immediate(Alu::Cmp, Size::B8, R15, -len);
    body.asm.jump_if(condition::GREATER, stubs.at_limit);
    let mut ended = false;
    for (number, (instruction, (form, live))) in instructions.iter().zip(plan).enumerate() {
        body.flags_live = live;
        ended = match form {
            Some(form) => body.instruction(number, form, instruction),
            None => {
                body.by_handler(number);
                false
            }
        };
    }
    if !ended {
        body.go_to(source.bytes.len() as i64);
    }
    body.finish();
    Some(body.asm)
}

fn decode(source: &Source) -> Option<Vec<Instruction>> {
    // At address 0, so that targets and addresses relative to RIP come out relative to the block.
    let mut decoder = Decoder::with_ip(64, source.bytes, 0, DecoderOptions::NONE);
    let mut instructions = Vec::with_capacity(source.ops.len());
    for op in source.ops {
        let offset = decoder.position();
        let instruction = decoder.decode();
        if offset != usize::from(op.offset) || instruction.len() != usize::from(op.len) || instruction.code() != op.code
        {
            return None;
        }
        instructions.push(instruction);
    }
    Some(instructions)
}

/// The form of each instruction, `None` for those that their handlers do, and whether somebody looks at the flags that it leaves.
fn plan(instructions: &[Instruction]) -> Vec<(Option<Form>, bool)> {
    let mut live = true;
    let mut plan: Vec<_> = instructions
        .iter()
        .rev()
        .map(|instruction| {
            let live_after = live;
            let form = Form::of(instruction).filter(|form| form.effect() != Effect::Other || !live_after);
            let Some(form) = form else {
                live = true;
                return (None, live_after);
            };
            live = live_after && form.effect() != Effect::Sets;
            live |= form.reads_flags() || form.may_stop(instruction);
            (Some(form), live_after)
        })
        .collect();
    plan.reverse();
    plan
}

impl Body<'_> {
    /// True when the block ended with it.
    fn instruction(&mut self, number: usize, form: Form, instruction: &Instruction) -> bool {
        let ended = match form {
            Form::Jump | Form::JumpIf(_) | Form::JumpTo | Form::Call | Form::CallTo | Form::Return => {
                self.transfer(form, instruction);
                true
            }
            _ => {
                self.operate(form, instruction);
                false
            }
        };
        let jumps = std::mem::take(&mut self.to_handler);
        if !jumps.is_empty() {
            let what = if ended { Todo::Branch } else { Todo::Retry { back: self.asm.here(), flags: self.host_flags } };
            self.cold.push(Cold { op: number, jumps, what });
        }
        ended
    }

    fn op_address(&self, number: usize) -> u64 {
        self.ops.get(number).map_or(0, |op| std::ptr::from_ref(op) as u64)
    }

    /// Calls the handler of an op. Returns the jump for when it does not end with the next op.
    fn call_handler(&mut self, number: usize) -> Jump {
        self.asm.load_immediate_64(RDX, self.op_address(number));
        self.asm.call(self.stubs.run_op);
        self.asm.alu(Alu::Or, Size::B4, RAX, RAX);
        self.asm.jump_if_later(condition::NOT_ZERO)
    }

    /// Has the handler of an op do it.
    fn by_handler(&mut self, number: usize) {
        let stopped = self.call_handler(number);
        self.host_flags = false;
        self.cold.push(Cold { op: number, jumps: vec![stopped], what: Todo::Stop });
    }

    /// Goes on at a block so many bytes from this one's first.
    pub(super) fn go_to(&mut self, target: i64) {
        self.asm.lea(R15, R15, self.ops.len() as i32);
        // Targets are checked to fit when a form is chosen, and blocks are shorter than a page.
        self.asm.lea(R14, R14, target as i32);
        if self.is_far(target) {
            self.asm.jump(self.stubs.find);
            return;
        }
        // Leads to what follows until it is led to the block.
        let jump = self.asm.jump_later();
        let place = self.asm.here() - 4;
        self.asm.land(jump);
        self.asm.store_immediate(Size::B4, RAX.into(), place as i32);
        self.asm.jump(self.stubs.unlinked);
    }

    /// Whether a target lies in another page, so that it may not be canonical.
    pub(super) fn is_far(&self, target: i64) -> bool {
        !(0..PAGE_BYTES).contains(&(self.in_page as i64 + target))
    }

    /// Goes on at the address in RCX.
    pub(super) fn go_to_rcx(&mut self) {
        self.asm.lea(R15, R15, self.ops.len() as i32);
        self.asm.load(Size::B8, R14, RCX);
        self.asm.jump(self.stubs.find);
    }

    /// Has the handler do the present instruction if the address in RCX is not canonical. Changes RAX and host flags.
    pub(super) fn check_canonical(&mut self) {
        self.asm.load(Size::B8, RAX, RCX);
        self.asm.shift(shift::SHL, Size::B8, RAX, 16);
        self.asm.shift(shift::SAR, Size::B8, RAX, 16);
        self.asm.alu(Alu::Cmp, Size::B8, RAX, RCX);
        let jump = self.asm.jump_if_later(condition::NOT_ZERO);
        self.to_handler.push(jump);
        self.host_flags = false;
    }

    /// Writes what is jumped to seldom.
    fn finish(&mut self) {
        for cold in std::mem::take(&mut self.cold) {
            for jump in cold.jumps {
                self.asm.land(jump);
            }
            let address = self.op_address(cold.op);
            match cold.what {
                Todo::Stop => {}
                Todo::Branch => {
                    self.asm.load_immediate_64(RDX, address);
                    self.asm.call(self.stubs.run_op);
                }
                Todo::Retry { back, flags } => {
                    let stopped = self.call_handler(cold.op);
                    if flags {
                        self.asm.call(self.stubs.load_flags);
                    }
                    self.asm.jump(back);
                    self.asm.land(stopped);
                }
            }
            self.asm.load_immediate_64(RSI, address);
            self.asm.jump(self.stubs.stopped);
        }
    }
}
