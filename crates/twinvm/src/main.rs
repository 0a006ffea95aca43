//! `twinvm`: keeps a virtual machine running when the machine under it dies.

mod cli;
mod error_text;
mod foreground;
mod host;
mod interrupt;
mod load;
mod paths;
mod replica;
mod sandbox;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            // Standard error may be closed, or a file on a disk that is full: the exit code still says it.
            let _ = writeln!(io::stderr(), "twinvm: {}", error_text::error_text(&error));
            ExitCode::FAILURE
        }
    }
}
