//! `twinvm`: keeps a virtual machine running when the machine under it dies.

mod cli;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            // Standard error may be closed, or a file on a disk that is full: the exit code still says it.
            let _ = writeln!(io::stderr(), "twinvm: {}", terminal::error_text::error_text(&error));
            ExitCode::FAILURE
        }
    }
}
