//! Differential tests: random instructions run on the host's own processor and on the software one must leave the same
//! registers, flags, memory and faults.
//!
//! A case is up to eight instructions of one family and everything they start from, all drawn from one seed.
//!
//! ```sh
//! TWINVM_DIFFERENTIAL_CASES=5000000 cargo test --profile checked -p cpu --test differential -- --nocapture
//! TWINVM_DIFFERENTIAL_SEED=17 cargo test --profile checked -p cpu --test differential -- --nocapture shift
//! ```
//! `TWINVM_DIFFERENTIAL_FIRST_SEED` starts the seeds elsewhere than at 0. A failure prints its seed, the state
//! it started from, the instructions up to the first that differs, and the differences.
//!
//! Each run says whose processor it ran on, and which model. The same seeds give the same cases everywhere. What is compared follows from
//! the manuals of both makers: all of it but what they leave undefined (`undefined` lists that, with the sections) and the few fields
//! that they define differently (`host`). What one maker's processor showed to be undefined is kept in `recorded`, byte for byte, with
//! the result that guests see on any host.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod builder;
mod case;
mod compare;
mod control_flow;
mod families;
mod golden;
mod guest;
mod host;
mod layout;
mod literal;
mod native;
mod random;
mod recorded;
mod registers;
mod runner;
mod special;
mod state;
mod string;
mod undefined;

/// One test a family, so that the test harness's own filter chooses families.
macro_rules! families {
    ($($name:ident: $generator:path,)*) => {
        $(
            #[test]
            fn $name() {
                runner::run(stringify!($name), $generator());
            }
        )*
    };
}

families! {
    alu: families::alu,
    shift: families::shift,
    multiply_divide: families::multiply_divide,
    bit: families::bit,
    move_extend: families::move_extend,
    atomic: families::atomic,
    string: string::string,
    stack: control_flow::stack,
    branch: control_flow::branch,
    mmx: families::mmx,
    sse2_integer: families::sse2_integer,
    sse4_integer: families::sse4_integer,
    sse_float: families::sse_float,
    sse_convert: families::sse_convert,
    x87_arithmetic: families::x87_arithmetic,
    x87_transcendental: families::x87_transcendental,
    x87_control: families::x87_control,
    save_restore: state::save_restore,
    mixture: families::mixture,
    privileged: special::privileged,
}
